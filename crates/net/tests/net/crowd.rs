//! Many devices that wait and some that work: how soon a message is received, and what the server holds.

use crate::client::Client;
use crate::stage::{Actor, Dummy, Stage, brisk, count, join};
use base::Node;
use federation::{CohortConfig, Fact, Pace, Status};
use std::time::{Duration, Instant};
use undertone_net::device::channel::{Channel, Url};
use undertone_net::device::enroll;
use undertone_net::identity::Wallet;
use undertone_net::protocol::{Enrolled, Role};
use undertone_net::registry::unix_now;
use undertone_net::{Authority, Registry};

const ACTIVE: u32 = 100;
const IDLE: u32 = 1000;

/// Enroll without asking: certificates straight from the authority, as the server would sign them.
fn enroll_all(stage: &Stage, at: &Url) {
    let authority = Authority::open(&stage.server_folder()).unwrap();
    let registry = Registry::open(&stage.server_folder()).unwrap();
    for node in 1..=ACTIVE + IDLE {
        let wallet = Wallet::open(&stage.device_folder(node)).unwrap();
        let request = Authority::key_of(&wallet.request().unwrap()).unwrap();
        let lifetime = Duration::from_secs(3600);
        let signed = authority.sign(&request, Node(node), Role::Device, lifetime).unwrap();
        registry.enter(&signed.der, &signed.certificate).unwrap();
        let certificate = signed.certificate;
        let enrolled = Enrolled {
            node: Node(node),
            role: Role::Device,
            certificate: certificate.pem,
            expires: certificate.expires,
        };
        wallet.keep(&at.to_string(), authority.certificate(), enrolled, unix_now()).unwrap();
    }
}

/// Poll for ever, and never say a word.
async fn idle(wallet: Wallet, at: Url) {
    let identity = wallet.identity(wallet.card().unwrap().unwrap()).unwrap();
    let mut channel = Channel::new(at, identity.tls, Duration::from_secs(60));
    loop {
        let request = hyper::Request::get("/v1/messages?wait=25").header("host", "test");
        let request = request.body(http_body_util::Full::default()).unwrap();
        if channel.request(request, Duration::from_secs(25)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// Bytes of this process in memory: the server, and all devices too.
pub fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

#[test]
#[ignore = "a thousand devices: a minute of both cores, best alone"]
fn a_thousand_wait_and_a_hundred_work() {
    crowd(60, Duration::from_secs(300));
}

#[test]
#[ignore = "a thousand devices: ten minutes"]
fn a_thousand_wait_and_a_hundred_work_for_ten_minutes() {
    crowd(1_000_000, Duration::from_secs(600));
}

/// Run so many rounds, or for so long.
fn crowd(rounds: u32, span: Duration) {
    let cohort = CohortConfig {
        pace: Pace::Deadline,
        deadline_seconds: Some(60.0),
        min_available_nodes: ACTIVE,
        ..CohortConfig::default()
    };
    let stage = Stage::new(Dummy { cohort, ..Dummy::new(ACTIVE + IDLE, rounds) });
    let mut config = stage.config("127.0.0.1:0".parse().unwrap());
    config.wait = Duration::from_secs(25);
    let server = stage.serve_with(config);
    enroll_all(&stage, &server.url());
    let operator = Wallet::open(&stage.scratch.path().join("operator")).unwrap();
    enroll(&operator, &server.url(), &stage.token(0, Role::Operator, 600), brisk()).unwrap();
    let mut operator = Client::of(&operator, &server.url());
    let waiting =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for node in ACTIVE + 1..=ACTIVE + IDLE {
        waiting.spawn(idle(Wallet::open(&stage.device_folder(node)).unwrap(), server.url()));
    }
    let mut metrics = move || {
        loop {
            // A crowd at the door is let in a few at a time, and its operator stands in it.
            match operator.raw("GET", "/metrics", &[], b"") {
                Ok(said) => return String::from_utf8(said.body.to_vec()).unwrap(),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    };
    let polls = |text: &str| value(text, "undertone_polls ");
    let begun = Instant::now();
    while polls(&metrics()) < f64::from(IDLE) && begun.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(20));
    }
    println!(
        "{} wait after {:.1} s; {} MB",
        polls(&metrics()),
        begun.elapsed().as_secs_f64(),
        resident() >> 20
    );
    let devices: Vec<_> = (1..=ACTIVE)
        .map(|node| {
            let (folder, dummy, at) = (stage.device_folder(node), stage.dummy.clone(), server.url());
            Actor::start(move |interrupt| join(&folder, &dummy, &at, interrupt))
        })
        .collect();
    let closed = |fact: &Fact| matches!(fact, Fact::RoundClosed { .. });
    let (begun, mut shown) = (Instant::now(), 0);
    loop {
        let (closed, elapsed) = (count(&server.records, closed) as u32, begun.elapsed());
        if closed == rounds || elapsed > span || elapsed.as_secs() / 15 > shown {
            shown = elapsed.as_secs() / 15;
            println!("round {closed} after {:.0} s; {} MB", elapsed.as_secs_f64(), resident() >> 20);
        }
        if closed == rounds || elapsed > span {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = metrics();
    let total = value(&text, "undertone_delivery_seconds_count ");
    for line in text.lines().filter(|line| line.starts_with("undertone_delivery")) {
        println!("{line}");
    }
    let below = value(&text, "undertone_delivery_seconds_bucket{le=\"0.1\"} ");
    let rested = server.actor.interrupt().unwrap();
    assert!([None, Some(Status::Completed)].contains(&rested.status), "{:?}", rested.status);
    devices.into_iter().for_each(|device| drop(device.interrupt()));
    assert!(below >= 0.99 * total, "{below} of {total} within 100 ms");
}

/// The number behind a name in the text of metrics.
fn value(text: &str, name: &str) -> f64 {
    text.lines().find_map(|line| line.strip_prefix(name)).map_or(0.0, |number| number.parse().unwrap())
}
