//! Runs without faults, and runs whose processes end and begin again.

use crate::proxy::{self, Faults};
use crate::stage::{Dummy, Stage, brisk, count, url};
use base::Seed;
use federation::{Fact, Status};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use undertone_net::device::{DeviceNews, Fetcher, JoinError};
use undertone_net::envelope::Beside;
use undertone_net::protocol::Address;
use undertone_net::server::Place;

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
fn pieces_of_a_file_are_fetched_after_every_cut_and_only_as_they_were_offered() {
    let stage = Stage::new(Dummy::new(1, 1));
    let path = stage.scratch.path().join("weights");
    let mut content: Vec<u8> =
        (0..6_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&path, &content).unwrap();
    let place = |offset, len| Place { path: path.clone(), offset, len };
    let places = [place(0, 10), place(10, 5_000_000), place(5_000_010, 999_990)];
    let offered = places.map(|place| (place.address().unwrap(), place));
    let mut config = stage.config("127.0.0.1:0".parse().unwrap());
    config.shelf = offered.iter().cloned().collect();
    let server = stage.serve_with(config);
    let faults = Faults { cut_after: 700_000, ..Faults::default() };
    let (behind, _) = proxy::start(server.address, faults, Seed(4));
    let wallet = stage.enroll(1, &server.url());
    let identity = wallet.identity(wallet.card().unwrap().unwrap()).unwrap();
    let mut fetcher = Fetcher::new(&identity, &url(behind), brisk()).unwrap();
    let go_on = AtomicBool::new(false);
    let to = stage.scratch.path().join("piece");
    for (address, place) in &offered {
        let part = Beside { address: *address, len: place.len };
        fetcher.fetch(part, &to, &mut |_| {}, &go_on).unwrap();
        let (begin, end) = (place.offset as usize, (place.offset + place.len) as usize);
        assert!(std::fs::read(&to).unwrap() == content[begin..end], "{place:?}");
        std::fs::remove_file(&to).unwrap();
    }
    // The file is not what it was any more: nothing of it gets the piece's name.
    content[20] ^= 1;
    std::fs::write(&path, &content).unwrap();
    let (address, place) = &offered[1];
    let stop = AtomicBool::new(false);
    let mut refused = 0;
    let mut news = |news: DeviceNews| {
        if let DeviceNews::Trouble { what, .. } = news
            && what.contains("not the one of its address")
        {
            refused += 1;
            stop.store(true, Ordering::SeqCst);
        }
    };
    let part = Beside { address: *address, len: place.len };
    let fetched = fetcher.fetch(part, &to, &mut news, &stop);
    assert!(matches!(fetched, Err(JoinError::Interrupted)), "{fetched:?}");
    assert!(refused == 1 && !to.exists());
    // What was never offered is nobody's.
    let unknown = Beside { address: Address::of(b"nothing"), len: 7 };
    let fetched = fetcher.fetch(unknown, &to, &mut |_| {}, &go_on);
    assert!(matches!(fetched, Err(JoinError::Excluded(_))), "{fetched:?}");
    server.actor.interrupt().unwrap();
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
