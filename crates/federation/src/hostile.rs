//! What a hostile or broken peer may say, and what becomes of it: a record, and nothing else.

use crate::frame::{Frame, Letter};
use crate::{
    CohortConfig, Coordinator, Cx, Effects, Event, Fact, Fault, Input, Machine, Member, Memory, Plan, Side,
    Status, Worker,
};
use base::{Blob, Cost, Meter, Node, Packet, SERVER, Seed, Time};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Answers every message with its number, on both sides.
#[derive(Serialize, Deserialize)]
struct Echo;

impl Side for Echo {
    type In = u32;
    type Out = u32;
    type Job = ();
    type Done = ();
    type Bench = ();

    fn handle(&mut self, event: Event<Echo>, cx: &mut Cx<Echo>) {
        match event {
            Event::Open { round, cohort } => {
                cohort.iter().for_each(|member| cx.send(member.node, round));
            }
            Event::Message { from, body } => cx.send(from, body),
            Event::Done(()) | Event::Lost(_) => {}
        }
    }

    fn price((): &(), (): &()) -> Cost {
        Cost::FREE
    }

    fn label((): &()) -> &'static str {
        "nothing"
    }

    fn run((): (), (): &(), _: &Meter) -> Result<(), Fault> {
        Ok(())
    }
}

const DEVICES: u32 = 4;

fn server() -> Coordinator<Echo> {
    let plan = Plan { rounds: 3, cohort: CohortConfig::default(), devices_expected: DEVICES, replay: None };
    Coordinator::new(Echo, Arc::new(()), plan, Seed(7)).speaking("echo")
}

fn device() -> Worker<Echo> {
    Worker::new(member(1), Echo, Arc::new(())).speaking("echo")
}

fn member(node: u32) -> Member {
    Member {
        node: Node(node),
        class: "phone".into(),
        flops_per_s: 1e9,
        memory_bytes: 1 << 30,
        up_bytes_per_s: 1e6,
        down_bytes_per_s: 1e6,
        examples: 100,
    }
}

fn hello(member: Member) -> Packet {
    Frame::Hello { life: 1, method: "echo".into(), member }.seal()
}

fn hear(machine: &mut dyn Machine, from: Node, packet: Packet) -> Effects {
    let mut fx = Effects::default();
    machine.handle(Time(9), Input::Message { from, packet }, &mut fx);
    fx
}

/// Heard, recorded as malformed, and answered at most with a refusal or the order to begin anew.
#[track_caller]
fn refused(machine: &mut dyn Machine, from: Node, packet: Packet, why: &str) {
    let fx = hear(machine, from, packet);
    let [record] = &fx.records[..] else { panic!("{:?}", fx.records) };
    let Fact::Malformed { from: named, reason } = &record.fact else { panic!("{record:?}") };
    assert!(*named == from && reason.contains(why), "{reason}");
    assert!(fx.tasks.is_empty() && fx.stop.is_none());
    for (_, packet) in &fx.sends {
        assert!(matches!(Frame::open(packet), Ok(Frame::Unwelcome { .. } | Frame::Welcome { .. })));
    }
}

#[test]
fn absurd_members_are_refused_one_by_one() {
    let mut server = server();
    let good = || member(2);
    let absurd = [
        (Member { node: Node(3), ..good() }, "says it is device 3"),
        (Member { class: "x".repeat(65), ..good() }, "class"),
        (Member { class: "a\nb".into(), ..good() }, "class"),
        (Member { flops_per_s: f64::NAN, ..good() }, "flops"),
        (Member { flops_per_s: -1.0, ..good() }, "flops"),
        (Member { flops_per_s: f64::INFINITY, ..good() }, "flops"),
        (Member { up_bytes_per_s: 0.0, ..good() }, "uplink"),
        (Member { down_bytes_per_s: -f64::MIN_POSITIVE, ..good() }, "downlink"),
        (Member { examples: 1 << 63, ..good() }, "examples"),
        (Member { memory_bytes: u64::MAX, ..good() }, "memory"),
    ];
    for (member, why) in absurd {
        refused(&mut server, Node(2), hello(member), why);
    }
    refused(&mut server, Node(5), hello(member(5)), "not among the 4 devices");
    refused(&mut server, SERVER, hello(member(0)), "in the server's name");
    let other = Frame::Hello { life: 1, method: "\u{7}other".into(), member: good() };
    refused(&mut server, Node(2), other.seal(), "runs the method \" other\"");
    let fx = hear(&mut server, Node(2), hello(good()));
    assert!(matches!(fx.records[0].fact, Fact::Joined { device: Node(2), .. }));
}

#[test]
fn nobody_speaks_as_somebody_else() {
    let (mut server, mut device) = (server(), device());
    let data = |life| {
        Frame::Data { life, floor: 0, seq: 0, chain: 0, ack: 0, letter: Letter::said(1, &7u32) }.seal()
    };
    refused(&mut server, Node(2), data(1), "never said hello");
    refused(&mut server, Node(2), Frame::Welcome { life: 1 }.seal(), "as a server");
    refused(&mut server, Node(2), Frame::Bye { status: Status::Completed }.seal(), "as a server");
    hear(&mut server, Node(2), hello(member(2)));
    let former_life = hear(&mut server, Node(2), data(0));
    assert!(former_life.records.is_empty() && former_life.sends.is_empty());
    let unsent = Frame::Ack { life: 1, ack: 9 }.seal();
    refused(&mut server, Node(2), unsent, "acknowledges what was never sent");

    device.handle(Time(1), Input::Start, &mut Effects::default());
    refused(&mut device, Node(3), data(1), "listens to the server alone");
    refused(&mut device, SERVER, hello(member(1)), "a server says no hello");
}

#[test]
fn old_and_new_refuse_each_other_by_name() {
    let mut newer = 2u16.to_le_bytes().to_vec();
    newer.extend(b"anything");
    let check = blake3::hash(&newer);
    newer.extend(&check.as_bytes()[..8]);
    let newer = Packet { body: newer.into(), blobs: Vec::new() };
    refused(&mut server(), Node(1), newer, "speaks protocol 2, this program speaks 1");

    let mut device = device();
    device.handle(Time(1), Input::Start, &mut Effects::default());
    let fx = hear(&mut device, SERVER, Frame::Unwelcome { reason: "too old".into() }.seal());
    assert_eq!(fx.stop, Some(Status::Failed("the server refuses this device: too old".into())));
}

#[test]
fn a_message_the_method_cannot_read_costs_the_device_its_round() {
    let mut server = server();
    for node in 1..=DEVICES {
        hear(&mut server, Node(node), hello(member(node)));
    }
    let letter = Letter::said(1, &(7u32, Blob::from_f32(&[1.0])));
    let data = Frame::Data { life: 1, floor: 0, seq: 0, chain: 0, ack: 0, letter };
    let fx = hear(&mut server, Node(3), data.seal());
    let facts: Vec<&Fact> = fx.records.iter().map(|record| &record.fact).collect();
    assert!(matches!(facts[..], [Fact::Malformed { .. }, Fact::Lost { round: 1, device: Node(3), .. }]));
}

#[test]
fn a_device_that_is_gone_before_it_came_is_not_waited_for() {
    let mut server = server();
    for node in 1..DEVICES {
        assert!(hear(&mut server, Node(node), hello(member(node))).tasks.is_empty());
    }
    let mut fx = Effects::default();
    server.handle(Time(9), Input::Lost(Node(DEVICES)), &mut fx);
    let Fact::RoundOpened { cohort, .. } = &fx.records[0].fact else { panic!("{:?}", fx.records) };
    assert_eq!(*cohort, [Node(1), Node(2), Node(3)]);
}

#[test]
fn a_flood_of_early_letters_fills_no_memory() {
    let mut server = server();
    for node in 1..=DEVICES {
        hear(&mut server, Node(node), hello(member(node)));
    }
    let before = server.snapshot().wire_len();
    let blob = Blob(vec![0; 8 << 20].into());
    for seq in 1..2000 {
        let letter = Letter::said(1, &blob);
        hear(&mut server, Node(2), Frame::Data { life: 1, floor: 0, seq, chain: 0, ack: 0, letter }.seal());
    }
    let held = server.snapshot().wire_len() - before;
    assert!(held <= (64 << 20) + 4096, "{held} bytes held for one device");
}

fn frames() -> impl Strategy<Value = Frame> {
    let small = 0u64..40;
    let wild = prop_oneof![small.clone(), Just(u64::MAX), any::<u64>()];
    let letter = (0u32..5, any::<u32>()).prop_map(|(round, body)| Letter::said(round, &body));
    let data = (small.clone(), small, wild.clone(), wild.clone(), letter).prop_map(
        |(life, floor, seq, ack, letter)| Frame::Data { life, floor, seq, chain: 0, ack, letter },
    );
    prop_oneof![
        (any::<u64>(), any::<f64>(), 0u32..6).prop_map(|(life, flops_per_s, node)| Frame::Hello {
            life,
            method: "echo".into(),
            member: Member { flops_per_s, ..member(node) },
        }),
        wild.clone().prop_map(|life| Frame::Welcome { life }),
        (0u64..3, wild).prop_map(|(life, ack)| Frame::Ack { life, ack }),
        data,
        Just(Frame::Unwelcome { reason: "no".into() }),
    ]
}

fn restored(snapshot: Packet) -> Input {
    Input::Restored { snapshot, memory: Memory::Lost }
}

proptest! {
    /// Well-formed frames in any order, with any numbers, from anyone.
    #[test]
    fn no_conversation_panics(talk in proptest::collection::vec((0u32..6, frames()), 0..60)) {
        let (mut server, mut device) = (server(), device());
        device.handle(Time(1), Input::Start, &mut Effects::default());
        for node in 1..=DEVICES {
            hear(&mut server, Node(node), hello(member(node)));
        }
        for (at, (from, frame)) in talk.into_iter().enumerate() {
            let packet = frame.seal();
            for machine in [&mut server as &mut dyn Machine, &mut device] {
                let now = Time(at as u64 * 1_000_000_000);
                let message = Input::Message { from: Node(from), packet: packet.clone() };
                machine.handle(now, message, &mut Effects::default());
                machine.handle(now, Input::Timer, &mut Effects::default());
                let mut again = Effects::default();
                machine.handle(now, restored(machine.snapshot()), &mut again);
                prop_assert!(again.records.is_empty(), "a snapshot reads back");
            }
        }
    }

    #[test]
    fn arbitrary_packets_are_recorded_and_dropped(
        body in proptest::collection::vec(any::<u8>(), 0..100),
        blobs in 0usize..3,
    ) {
        let packet = Packet { body: body.into(), blobs: vec![Blob::from_f32(&[1.0]); blobs] };
        let (mut server, mut device) = (server(), device());
        for machine in [&mut server as &mut dyn Machine, &mut device] {
            let fx = hear(machine, SERVER, packet.clone());
            prop_assert_eq!(fx.records.len(), 1);
            let fx = hear(machine, Node(2), packet.clone());
            prop_assert_eq!(fx.records.len(), 1);
            // A damaged snapshot is no reason to panic either.
            machine.handle(Time(3), restored(packet.clone()), &mut Effects::default());
        }
    }
}
