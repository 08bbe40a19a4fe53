//! Peers that mean harm: each is refused with the right status, and the others go on.

use crate::client::{CUT, Client};
use crate::stage::{Dummy, Stage, brisk, count, url};
use base::{Node, Time};
use federation::{Fact, Record, Status};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use undertone_net::Authority;
use undertone_net::device::enroll;
use undertone_net::envelope::Envelope;
use undertone_net::identity::Wallet;
use undertone_net::protocol::{Address, CHUNK_BYTES, LENGTH, OFFSET, Role, SEQUENCE, SIGNATURE, Token};

fn envelope() -> Vec<u8> {
    let packet = base::Packet { body: b"no frame".to_vec().into(), blobs: Vec::new() };
    Envelope::pack(&packet).envelope.to_bytes()
}

#[test]
fn without_a_certificate_there_is_nothing_but_enrolling() {
    let stage = Stage::new(Dummy::new(2, 1));
    let server = stage.serve();
    let token = stage.token(1, Role::Device, 600);
    let mut stranger = Client::stranger(&token, server.address);
    assert_eq!(stranger.raw("GET", "/healthz", &[], b"").unwrap().status, 200);
    let address = Address::of(b"x");
    let (upload, blob) = (format!("/v1/uploads/{address}"), format!("/v1/blobs/{address}"));
    let closed = [
        ("GET", "/metrics"),
        ("GET", "/v1/status"),
        ("GET", "/v1/run"),
        ("GET", "/v1/messages"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/records"),
        ("POST", "/v1/renew"),
        ("PATCH", upload.as_str()),
        ("GET", blob.as_str()),
    ];
    for (method, path) in closed {
        let said = stranger.raw(method, path, &[], b"").unwrap();
        assert_eq!(said.short(), (401, "no-certificate"), "{method} {path}");
    }
    assert_eq!(stranger.raw("GET", "/v2/run", &[], b"").unwrap().short(), (404, "no-such-path"));
    assert_eq!(stranger.raw("GET", "/v1/enroll", &[], b"").unwrap().short(), (405, "no-such-method"));
    server.actor.interrupt().unwrap();
}

#[test]
fn foreign_expired_and_revoked_certificates_are_refused() {
    let stage = Stage::new(Dummy::new(3, 1));
    let mut config = stage.config("127.0.0.1:0".parse().unwrap());
    config.lifetime = Duration::ZERO;
    let server = stage.serve_with(config);
    let wallet = stage.enroll(1, &server.url());
    // Within its last second the handshake still succeeds.
    let said = Client::of(&wallet, &server.url()).raw("GET", "/v1/run", &[], b"");
    assert!(said.is_err() || said.unwrap().short() == (401, "expired"));
    server.actor.interrupt().unwrap();

    let server = stage.serve();
    // Of an authority of one's own, under the right names.
    let foreign = tempfile::tempdir().unwrap();
    let authority = Authority::open(foreign.path()).unwrap();
    let request = Authority::key_of(&wallet.request().unwrap()).unwrap();
    let signed = authority.sign(&request, Node(1), Role::Device, Duration::from_secs(600)).unwrap();
    let mut card = wallet.card().unwrap().unwrap();
    card.certificate = signed.certificate.pem;
    let ours = stage.token(3, Role::Device, 600);
    let theirs = Token { authority: Token::name_authority(authority.certificate()), ..ours };
    let identity = wallet.identity(card).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut channel =
        undertone_net::device::channel::Channel::new(server.url(), identity.tls, Duration::from_secs(5));
    let request = hyper::Request::get("/v1/run").body(http_body_util::Full::default()).unwrap();
    assert!(runtime.block_on(channel.request(request, Duration::ZERO)).is_err(), "foreign");
    assert!(
        Client::stranger(&theirs, server.address).raw("GET", "/healthz", &[], b"").is_err(),
        "a device does not talk to a server that did not make its token"
    );

    let wallet = stage.enroll(2, &server.url());
    let mut device = Client::of(&wallet, &server.url());
    assert_eq!(device.raw("GET", "/v1/run", &[], b"").unwrap().status, 200);
    assert_eq!(device.raw("GET", "/v1/status", &[], b"").unwrap().short(), (403, "wrong-role"));
    undertone_net::Registry::open(&stage.server_folder()).unwrap().revoke(Node(2)).unwrap();
    assert_eq!(
        device.raw("GET", "/v1/run", &[], b"").unwrap().short(),
        (403, "revoked"),
        "on an open connection"
    );
    server.actor.interrupt().unwrap();
}

#[test]
fn older_tls_is_refused_before_a_byte_of_a_request() {
    let stage = Stage::new(Dummy::new(1, 1));
    let server = stage.serve();
    // A ClientHello of TLS 1.2: no supported_versions, one cipher suite of its time.
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    let extensions: &[u8] = &[0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3];
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);
    let mut message = vec![1, 0];
    message.extend((hello.len() as u16).to_be_bytes());
    message.extend(hello);
    let mut record = vec![22, 3, 1];
    record.extend((message.len() as u16).to_be_bytes());
    record.extend(message);
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(&record).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer[0], 21, "an alert");
    assert_eq!(answer[answer.len() - 1], 70, "protocol_version");
    server.actor.interrupt().unwrap();
}

#[test]
fn tokens_are_used_once_though_raced_and_guessing_is_slowed_down() {
    let stage = Stage::new(Dummy::new(3, 1));
    let server = stage.serve();
    let (at, token) = (server.url(), stage.token(1, Role::Device, 600));
    let race = |name: &str| {
        let wallet = Wallet::open(&stage.scratch.path().join(name)).unwrap();
        let (at, token) = (at.clone(), token.clone());
        std::thread::spawn(move || enroll(&wallet, &at, &token, brisk()).is_ok())
    };
    let racers: Vec<_> = ["a", "b", "c", "d"].map(race).into();
    let won =
        racers.into_iter().filter(|_| true).map(|racer| racer.join().unwrap()).filter(|won| *won).count();
    assert_eq!(won, 1);
    let late = stage.token(2, Role::Device, 0);
    let wallet = Wallet::open(&stage.scratch.path().join("late")).unwrap();
    assert!(enroll(&wallet, &at, &late, brisk()).unwrap_err().to_string().contains("expired"));
    let mut guesser = Client::stranger(&token, server.address);
    let guess = Token { secret: "0".repeat(32), ..token.clone() }.to_string();
    let body = serde_json::json!({ "token": guess, "csr": wallet.request().unwrap() }).to_string();
    let said: Vec<u16> =
        (0..12).map(|_| guesser.raw("POST", "/v1/enroll", &[], body.as_bytes()).unwrap().status).collect();
    assert_eq!((said[0], said[11]), (403, 429), "{said:?}");
    server.actor.interrupt().unwrap();
}

#[test]
fn replays_and_altered_requests_are_refused_after_a_restart_too() {
    let stage = Stage::new(Dummy::new(2, 1));
    let server = stage.serve();
    let wallet = stage.enroll(1, &server.url());
    let mut device = Client::of(&wallet, &server.url());
    let body = b"[]";
    assert_eq!(device.signed("POST", "/v1/records", &[], body).status, 204);
    let signature = device.sign("POST", "/v1/records", body, 2);
    let fresh = [(SEQUENCE, "2"), (SIGNATURE, signature.as_str())];
    let unsigned = [(SEQUENCE, "2")];
    let other = device.sign("POST", "/v1/messages", body, 2);
    let of_other = [(SEQUENCE, "2"), (SIGNATURE, other.as_str())];
    let mut say = |headers: &[(&str, &str)], body: &[u8]| {
        let said = device.raw("POST", "/v1/records", headers, body).unwrap();
        (said.status, said.error)
    };
    let refused = |status: u16, error: &str| (status, error.to_owned());
    assert_eq!(say(&unsigned, body), refused(401, "bad-signature"));
    assert_eq!(say(&fresh, b"[ ]"), refused(401, "bad-signature"), "another body");
    assert_eq!(say(&of_other, body), refused(401, "bad-signature"), "of another path");
    assert_eq!(say(&[(SEQUENCE, "3"), fresh[1]], body), refused(401, "bad-signature"), "another number");
    assert_eq!(say(&fresh, body), (204, String::new()));
    assert_eq!(say(&fresh, body), refused(409, "stale-sequence"), "replayed");
    server.actor.interrupt().unwrap();
    let server = stage.serve();
    let mut device = Client::of(&wallet, &server.url());
    assert_eq!(device.raw("POST", "/v1/records", &fresh, body).unwrap().short(), (409, "stale-sequence"));
    device.sequence = 2;
    assert_eq!(device.signed("POST", "/v1/records", &[], body).status, 204);
    server.actor.interrupt().unwrap();
}

#[test]
fn no_device_speaks_for_another_and_garbage_is_recorded_not_believed() {
    let stage = Stage::new(Dummy::new(2, 2));
    let server = stage.serve();
    let honest = {
        stage.enroll(2, &server.url());
        stage.join(2, &server.url())
    };
    let wallet = stage.enroll(1, &server.url());
    let mut hostile = Client::of(&wallet, &server.url());
    let of_other = Record { t: Time(u64::MAX), node: Node(2), fact: Fact::Restored { replayed: 1 } };
    let of_server = Record { t: Time(0), node: Node(1), fact: Fact::Counted { round: 1, device: Node(1) } };
    for record in [of_other, of_server] {
        let body = serde_json::to_vec(&[record]).unwrap();
        assert_eq!(hostile.signed("POST", "/v1/records", &[], &body).short(), (400, "bad-records"));
    }
    assert_eq!(
        hostile.signed("POST", "/v1/messages", &[], &envelope()).status,
        204,
        "committed, as garbage"
    );
    assert_eq!(
        hostile.signed("POST", "/v1/messages", &[], b"\xff\xff\xff\xff").short(),
        (400, "malformed")
    );
    let long = [1u32.to_le_bytes().as_slice(), &[0], &(1u64 << 31).to_le_bytes()].concat();
    assert_eq!(hostile.signed("POST", "/v1/messages", &[], &long).short(), (400, "malformed"));
    drop(hostile);
    let device = stage.join(1, &server.url());
    let rested = server.actor.end().unwrap();
    assert_eq!(stage.outcome(&rested), (Some(Status::Completed), vec![2.0; 2]));
    let from_1 = |fact: &Fact| matches!(fact, Fact::Malformed { from: Node(1), .. });
    assert_eq!(count(&server.records, from_1), 1);
    assert_eq!(
        (honest.end().unwrap().status, device.end().unwrap().status),
        (Some(Status::Completed), Some(Status::Completed))
    );
}

#[test]
fn uploads_resume_where_they_were_cut_and_nowhere_else() {
    let stage = Stage::new(Dummy::new(1, 1));
    let server = stage.serve();
    let wallet = stage.enroll(1, &server.url());
    let mut device = Client::of(&wallet, &server.url());
    let content: Vec<u8> = (0..10_000u32).flat_map(u32::to_le_bytes).collect();
    let (path, length) = (format!("/v1/uploads/{}", Address::of(&content)), content.len().to_string());
    let mut patch = |offset: usize, piece: &[u8]| {
        let offset = offset.to_string();
        device.signed("PATCH", &path, &[(LENGTH, &length), (OFFSET, &offset)], piece)
    };
    assert_eq!(patch(0, &content[..100]).offset, Some(100));
    assert_eq!(patch(0, &content[..100]).short(), (409, "wrong-offset"));
    assert_eq!(patch(101, &content[101..200]).short(), (409, "wrong-offset"));
    assert_eq!(patch(100, &[&content[100..], &[0]].concat()).short(), (413, "too-large"));
    let said = patch(100, &vec![0; CHUNK_BYTES as usize + 1]);
    assert!([(413, "too-large"), CUT].contains(&said.short()), "{said:?}");
    let mut said = patch(100, &content[99..content.len() - 1]);
    if said.short() == CUT {
        // The connection, whose last body was not read to its end, was closed under this request.
        said = patch(100, &content[99..content.len() - 1]);
    }
    assert_eq!(said.short(), (422, "wrong-content"));
    let head = device.raw("HEAD", &path, &[(LENGTH, &length)], b"").unwrap();
    assert_eq!(head.offset, Some(0), "a content that is not its address's is forgotten");
    let mut patch = |offset: usize, piece: &[u8]| {
        let offset = offset.to_string();
        device.signed("PATCH", &path, &[(LENGTH, &length), (OFFSET, &offset)], piece)
    };
    for (piece, begin) in content.chunks(9_999).zip((0..).step_by(9_999)) {
        assert!(patch(begin, piece).status < 300);
    }
    // As a server leaves it that was killed when the last piece had come: whole, without its name.
    let other = b"a whole content".to_vec();
    let address = Address::of(&other).to_string();
    for (content, offset) in [(b"a wrong content".to_vec(), 0), (other.clone(), other.len() as u64)] {
        std::fs::write(stage.server_folder().join("uploads").join(format!("1-{address}")), content)
            .unwrap();
        let length = other.len().to_string();
        let head =
            device.raw("HEAD", &format!("/v1/uploads/{address}"), &[(LENGTH, &length)], b"").unwrap();
        assert_eq!(head.offset, Some(offset));
    }
    assert!(stage.server_folder().join("blobs").join(&address).is_file());
    for wrong in ["..%2f..%2fetc%2fpasswd", "x", &"0".repeat(63)] {
        let said =
            device.signed("PATCH", &format!("/v1/uploads/{wrong}"), &[(LENGTH, "1"), (OFFSET, "0")], b"x");
        assert_eq!(said.short(), (400, "bad-address"), "{wrong}");
    }
    let huge = (1u64 << 33).to_string();
    let said = device.signed("PATCH", &path, &[(LENGTH, &huge), (OFFSET, "0")], b"x");
    assert_eq!(said.short(), (413, "too-large"));
    let body = vec![0; 2 << 20];
    let said = device.signed("POST", "/v1/messages", &[], &body);
    assert!([(413, "too-large"), CUT].contains(&said.short()), "{said:?}");
    server.actor.interrupt().unwrap();
}

#[test]
fn slow_and_idle_connections_do_not_stop_the_others() {
    let stage = Stage::new(Dummy::new(2, 3));
    let server = stage.serve();
    for node in 1..=2 {
        stage.enroll(node, &server.url());
    }
    let idle: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    for mut stream in &idle {
        stream.write_all(&[22, 3, 1]).unwrap();
    }
    let devices = [1, 2].map(|node| stage.join(node, &url(server.address)));
    let rested = server.actor.end().unwrap();
    assert_eq!(stage.outcome(&rested), (Some(Status::Completed), vec![3.0; 2]));
    for device in devices {
        device.end().unwrap();
    }
    drop(idle);
}
