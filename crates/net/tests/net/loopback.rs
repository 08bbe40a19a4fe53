//! Runs without faults, and runs whose processes end and begin again.

use crate::proxy::{self, Faults};
use crate::stage::{Dummy, Stage, count, url};
use base::Seed;
use federation::{Fact, Status};
use std::time::{Duration, Instant};

#[test]
fn every_device_is_counted_in_every_round() {
    let stage = Stage::new(Dummy::new(3, 5));
    let server = stage.serve();
    let devices: Vec<_> = (1..=3)
        .map(|node| {
            stage.enroll(node, &server.url());
            stage.join(node, &server.url())
        })
        .collect();
    let rested = server.actor.end().unwrap();
    assert_eq!(stage.outcome(&rested), (Some(Status::Completed), vec![5.0; 3]));
    for device in devices {
        assert_eq!(device.end().unwrap().status, Some(Status::Completed));
    }
}

#[test]
fn contents_of_several_megabytes_travel_beside_their_messages() {
    let stage = Stage::new(Dummy { payload: 9_000_000, ..Dummy::new(2, 2) });
    let server = stage.serve();
    let devices = [1, 2].map(|node| {
        stage.enroll(node, &server.url());
        stage.join(node, &server.url())
    });
    let rested = server.actor.end().unwrap();
    assert_eq!(stage.outcome(&rested), (Some(Status::Completed), vec![2.0; 2]));
    for device in devices {
        assert_eq!(device.end().unwrap().status, Some(Status::Completed));
    }
}

#[test]
fn server_and_devices_that_end_and_begin_again_go_on_where_they_were() {
    let stage = Stage::new(Dummy::new(3, 40));
    let mut server = stage.serve();
    let (address, mut rounds) = (server.address, 0);
    let mut devices: Vec<_> = (1..=3)
        .map(|node| {
            stage.enroll(node, &server.url());
            stage.join(node, &server.url())
        })
        .collect();
    for turn in 0..4 {
        let goal = rounds + 3;
        while rounds < goal {
            std::thread::sleep(Duration::from_millis(2));
            rounds = count(&server.records, |fact| matches!(fact, Fact::RoundClosed { .. }));
        }
        let node = turn % 3;
        let device = devices.remove(node);
        assert_eq!(device.interrupt().unwrap().status, None);
        devices.insert(node, stage.join(node as u32 + 1, &server.url()));
        let earlier = server.records.lock().unwrap().clone();
        assert_eq!(server.actor.interrupt().unwrap().status, None);
        server = stage.serve_with(stage.config(address));
        let mut records = server.records.lock().unwrap();
        records.splice(0..0, earlier);
    }
    let rested = server.actor.end().unwrap();
    assert_eq!(stage.outcome(&rested), (Some(Status::Completed), vec![40.0; 3]));
    for device in devices {
        assert_eq!(device.end().unwrap().status, Some(Status::Completed));
    }
}

#[test]
fn a_network_that_hits_every_second_flight_changes_the_clock_only() {
    let stage = Stage::new(Dummy { payload: 200_000, ..Dummy::new(2, 3) });
    let server = stage.serve();
    let (behind, hits) = proxy::start(server.address, Faults::all(0.1), Seed(11));
    let devices = [1, 2].map(|node| {
        stage.enroll(node, &url(behind));
        stage.join(node, &url(behind))
    });
    let rested = server.actor.end().unwrap();
    assert_eq!(stage.outcome(&rested), (Some(Status::Completed), vec![3.0; 2]));
    assert!(hits.count() > 20, "{} flights were hit", hits.count());
    assert_eq!(count(&server.records, |fact| matches!(fact, Fact::Malformed { .. })), 0);
    for device in devices {
        device.interrupt().unwrap();
    }
}

#[test]
fn uploads_and_downloads_go_on_after_every_cut() {
    let stage = Stage::new(Dummy { payload: 6_000_000, ..Dummy::new(1, 2) });
    let server = stage.serve();
    stage.enroll(1, &server.url());
    let faults = Faults { cut_after: 1_500_000, ..Faults::default() };
    let (behind, _) = proxy::start(server.address, faults, Seed(3));
    let device = stage.join(1, &url(behind));
    let rested = server.actor.end().unwrap();
    assert_eq!(stage.outcome(&rested), (Some(Status::Completed), vec![2.0]));
    device.interrupt().unwrap();
}

#[test]
fn certificates_are_renewed_before_they_expire() {
    let stage = Stage::new(Dummy::new(2, 1));
    let mut config = stage.config("127.0.0.1:0".parse().unwrap());
    config.lifetime = Duration::from_secs(6);
    let server = stage.serve_with(config);
    let wallet = stage.enroll(1, &server.url());
    let expires = || wallet.card().unwrap().unwrap().expires;
    let device = stage.join(1, &server.url());
    // The run waits for device 2; twice the first certificate's time goes by.
    let (first, begun) = (expires(), Instant::now());
    while expires() < first + 6 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no renewal");
        std::thread::sleep(Duration::from_millis(20));
    }
    stage.enroll(2, &server.url());
    let other = stage.join(2, &server.url());
    let rested = server.actor.end().unwrap();
    assert_eq!(stage.outcome(&rested), (Some(Status::Completed), vec![1.0; 2]));
    assert_eq!(device.end().unwrap().status, Some(Status::Completed));
    other.end().unwrap();
}
