//! Runs over the network: a server process and device processes on loopback, and the weights of `sim`.

use crate::runs::summary;
use crate::scratch::Scratch;
use methods::METHODS;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Devices of `tiny.toml`.
pub const DEVICES: u32 = 6;

/// A process that does not outlive the test.
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn start(scratch: &Scratch, log: &str, arguments: &[&str]) -> Process {
        Process::spawn(scratch, log, Command::new(env!("CARGO_BIN_EXE_undertone")).args(arguments))
    }

    /// On a disk that takes no file of more than so many blocks of 512 bytes: writing then fails.
    fn start_cramped(scratch: &Scratch, log: &str, blocks: u32, arguments: &[&str]) -> Process {
        let limit = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let shell = ["-c", &limit, env!("CARGO_BIN_EXE_undertone")];
        Process::spawn(scratch, log, Command::new("sh").args(shell).args(arguments))
    }

    fn spawn(scratch: &Scratch, log: &str, command: &mut Command) -> Process {
        let file = |ending: &str| {
            let path = scratch.path().join(format!("{log}.{ending}"));
            fs::OpenOptions::new().append(true).create(true).open(path).unwrap()
        };
        command.current_dir(scratch.path()).stdin(Stdio::null());
        Process(command.stdout(file("out")).stderr(file("err")).spawn().unwrap())
    }

    /// The exit code, within two minutes.
    pub fn end(&mut self) -> Option<i32> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(120) {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("it did not end within two minutes");
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A served run of `tiny.toml`.
pub struct Served<'a> {
    scratch: &'a Scratch,
    name: String,
    sets: Vec<&'a str>,
    port: u16,
    /// The directory of each device's model; a device without one fetches what it needs.
    pub models: [Option<&'static str>; DEVICES as usize],
}

impl<'a> Served<'a> {
    pub fn new(scratch: &'a Scratch, name: &str, sets: &[&'a str]) -> Served<'a> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let models = [Some("model"); DEVICES as usize];
        let served = Served { scratch, name: name.to_owned(), sets: sets.to_vec(), port, models };
        let out = format!("{name}-shards");
        scratch.undertone(&served.with_sets(&["partition", "tiny.toml", "--out", &out])).assert().success();
        served
    }

    fn with_sets<'b>(&'b self, arguments: &[&'b str]) -> Vec<&'b str> {
        arguments.iter().copied().chain(self.sets.iter().flat_map(|set| ["--set", *set])).collect()
    }

    pub fn server(&self) -> Process {
        self.serve(&|log, arguments| Process::start(self.scratch, log, arguments))
    }

    fn serve(&self, start: &dyn Fn(&str, &[&str]) -> Process) -> Process {
        let (listen, out) = (format!("127.0.0.1:{}", self.port), format!("{}-run", self.name));
        let state = format!("{}-shards/server", self.name);
        let arguments =
            ["serve", "tiny.toml", "--listen", &listen, "--state", &state, "--out", &out, "--threads", "1"];
        start(&format!("{}-server", self.name), &self.with_sets(&arguments))
    }

    pub fn device(&self, node: u32, more: &[&str]) -> Process {
        let (url, folder) =
            (format!("https://127.0.0.1:{}", self.port), format!("{}-shards/device-{node}", self.name));
        let [token, data, state] = ["token", "data.jsonl", "state"].map(|file| format!("{folder}/{file}"));
        let model = self.models[node as usize - 1];
        let mut arguments = vec!["join", &url, "--token", &token, "--state", &state];
        if let Some(model) = model {
            arguments.extend(["--model", model]);
        }
        if self.scratch.path().join(&data).exists() {
            arguments.extend(["--data", &data]);
        }
        arguments.extend(more);
        Process::start(self.scratch, &format!("{}-device-{node}", self.name), &arguments)
    }

    pub fn devices(&self) -> Vec<Process> {
        let there =
            |node: &u32| self.scratch.path().join(format!("{}-shards/device-{node}", self.name)).exists();
        (1..=DEVICES).filter(there).map(|node| self.device(node, &[])).collect()
    }

    pub fn run(&self) -> std::path::PathBuf {
        self.scratch.path().join(format!("{}-run", self.name))
    }

    pub fn log(&self, who: &str) -> String {
        let read =
            |ending| fs::read_to_string(self.scratch.path().join(format!("{}-{who}.{ending}", self.name)));
        format!("{}{}", read("out").unwrap_or_default(), read("err").unwrap_or_default())
    }

    /// The weights of the same scenario in the simulator.
    pub fn simulated(&self) -> serde_json::Value {
        let out = format!("{}-sim", self.name);
        self.scratch.undertone(&self.with_sets(&["sim", "tiny.toml", "--out", &out])).assert().success();
        summary(&self.scratch.path().join(out))["weights_hash"].clone()
    }
}

pub fn weights(run: &Path) -> serde_json::Value {
    summary(run)["weights_hash"].clone()
}

#[test]
fn every_method_ends_in_the_simulator_s_weights_over_the_network() {
    let scratch = Scratch::tiny();
    for entry in METHODS {
        let name = format!("method.name={}", entry.name);
        let mut served = Served::new(&scratch, entry.name, &[&name]);
        served.models[1..4].fill(None);
        let (mut server, mut devices) = (served.server(), served.devices());
        assert_eq!(server.end(), Some(0), "{}: {}", entry.name, served.log("server"));
        assert_eq!(weights(&served.run()), served.simulated(), "{}", entry.name);
        for (node, device) in (1..).zip(&mut devices) {
            assert_eq!(device.end(), Some(0), "{}: {}", entry.name, served.log(&format!("device-{node}")));
        }
    }
}

/// The names of the tensors that a device fetched.
fn fetched(served: &Served, node: u32) -> Vec<String> {
    let folder = format!("{}-shards/device-{node}/state/model", served.name);
    let folder = fs::read_dir(served.scratch.path().join(folder)).unwrap().next().unwrap().unwrap().path();
    let weights = model::Source::Directory(folder).open().unwrap();
    weights.names().map(str::to_owned).collect()
}

#[test]
fn a_device_fetches_the_layers_it_needs_and_goes_on_after_a_kill() {
    let scratch = Scratch::tiny();
    let sets = ["method.name=split-lora", "method.cut=1", "cohort.fraction-train=1.0"];
    let mut served = Served::new(&scratch, "lower", &sets);
    served.models.fill(None);
    let (mut server, mut devices) = (served.server(), served.devices());
    for turn in 0..8 {
        thread::sleep(Duration::from_millis(30));
        devices[turn % 4].kill();
        devices[turn % 4] = served.device(turn as u32 % 4 + 1, &[]);
    }
    assert_eq!(server.end(), Some(0), "{}", served.log("server"));
    assert_eq!(weights(&served.run()), served.simulated());
    for (node, device) in (1..).zip(&mut devices) {
        assert_eq!(device.end(), Some(0), "{}", served.log(&format!("device-{node}")));
        let log = served.log(&format!("device-{node}"));
        assert!(log.contains("fetching the embeddings and 1 of the model's 2 blocks"), "{log}");
        let names = fetched(&served, node);
        assert!(names.iter().any(|name| name.contains("layer.0.")), "{names:?}");
        assert!(!names.iter().any(|name| name.contains("layer.1.")), "{names:?}");
    }
}

/// A server that holds no rows: of these methods it needs nothing that it could know from them.
#[test]
fn a_server_needs_no_training_rows() {
    let scratch = Scratch::tiny();
    for name in ["fedavg-lora", "side-tuning", "mobillm"] {
        let method = format!("method.name={name}");
        let served = Served::new(&scratch, &format!("own-{name}"), &[&method]);
        let simulated = served.simulated();
        let (rows, away) = (scratch.path().join("train.jsonl"), scratch.path().join("away.jsonl"));
        fs::rename(&rows, &away).unwrap();
        let (mut server, mut devices) = (served.server(), served.devices());
        assert_eq!(server.end(), Some(0), "{name}: {}", served.log("server"));
        fs::rename(&away, &rows).unwrap();
        assert_eq!(weights(&served.run()), simulated, "{name}");
        for device in &mut devices {
            assert_eq!(device.end(), Some(0), "{name}");
        }
    }
}

/// Kill the server and its devices now and then, and start them again, until the run ends.
fn kill_now_and_then(served: &Served) {
    let (mut server, mut devices) = (served.server(), served.devices());
    let mut draw = base::Seed(5).stream();
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(20 + draw.below(150)));
        let victim = draw.below(u64::from(DEVICES) + 1) as usize;
        if victim == 0 {
            server.kill();
            server = served.server();
        } else {
            devices[victim - 1].kill();
            devices[victim - 1] = served.device(victim as u32, &[]);
        }
    }
    assert_eq!(server.end(), Some(0), "{}", served.log("server"));
}

#[test]
fn kills_of_server_and_devices_change_the_clock_only() {
    let scratch = Scratch::tiny();
    let served =
        Served::new(&scratch, "killed", &["run.num-server-rounds=60", "cohort.fraction-train=1.0"]);
    kill_now_and_then(&served);
    assert_eq!(weights(&served.run()), served.simulated());
}

/// The store cannot be written any more in the middle of the run; later there is room again.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_a_server_with_a_word_and_costs_time_only() {
    let scratch = Scratch::tiny();
    let served = Served::new(&scratch, "full", &["run.num-server-rounds=30", "cohort.fraction-train=1.0"]);
    let mut cramped =
        served.serve(&|log, arguments| Process::start_cramped(&scratch, log, 2000, arguments));
    let _devices = served.devices();
    let code = cramped.end();
    let said = served.log("server");
    assert!(code.is_some_and(|code| code != 0 && code != 101), "{code:?}: {said}");
    assert!(said.contains("ROUND") && said.contains("error: "), "{said}");
    let mut server = served.server();
    assert_eq!(server.end(), Some(0), "{}", served.log("server"));
    assert_eq!(weights(&served.run()), served.simulated());
}

#[test]
fn no_acknowledged_sample_is_lost_by_kills() {
    let scratch = Scratch::tiny();
    // A row at a time, and a device or two a round: most of the run somebody is sending.
    let served = Served::new(
        &scratch,
        "sampled",
        &[
            "method={ name = \"side-tuning\", chunk_rows = 1, epochs = 1 }",
            "run.num-server-rounds=40",
            "cohort.fraction-train=0.2",
        ],
    );
    kill_now_and_then(&served);
    assert_eq!(weights(&served.run()), served.simulated());
    let kept = |run: &str| {
        let listed = scratch.undertone(&["cache", run]).output().unwrap();
        String::from_utf8(listed.stdout).unwrap()
    };
    let (found, expected) = (kept("sampled-shards/server"), kept("sampled-sim"));
    assert_eq!(found, expected);
    assert_eq!(found.lines().count(), 1 + DEVICES as usize, "{found}");
}

#[test]
fn a_run_with_deadlines_is_replayed_from_its_trace() {
    let scratch = Scratch::tiny();
    let sets = [
        "cohort.pace=deadline",
        "cohort.deadline-seconds=3.0",
        "cohort.fraction-train=1.0",
        "cohort.min-available-nodes=6",
    ];
    let served = Served::new(&scratch, "late", &sets);
    let (mut server, mut devices) = (served.server(), served.devices());
    // One may not work, and misses every deadline.
    drop(devices.pop());
    let idle = served.device(DEVICES, &["--only-when", "false"]);
    assert_eq!(server.end(), Some(0), "{}", served.log("server"));
    drop(idle);
    scratch.undertone(&["sim", "--replay", "late-run", "--out", "again"]).assert().success();
    assert_eq!(weights(&served.run()), weights(&scratch.path().join("again")));
    let why = scratch.undertone(&["why", "late-run"]).output().unwrap();
    let why = String::from_utf8(why.stdout).unwrap();
    assert!(why.contains("missed the deadline") && why.contains("deadline-seconds"), "{why}");
}

#[test]
fn a_device_says_what_is_wrong_and_the_operator_sees_it() {
    let scratch = Scratch::tiny();
    let served = Served::new(&scratch, "small", &["cohort.fraction-train=1.0"]);
    let mut server = served.server();
    let mut devices = served.devices();
    devices[0].kill();
    devices[0] = served.device(1, &["--memory-limit", "8 MB"]);
    let status = |text: &str| {
        let output = scratch.undertone(&["status", text]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(server.end(), Some(0), "{}", served.log("server"));
    assert!(status("small-run").contains("completed"), "{}", status("small-run"));
    // Not even the model fits: the backstop ends the process, with the exit code of what does not fit.
    let crammed = served.device(1, &["--memory-limit", "64 kB"]).end();
    assert_eq!(crammed, Some(5), "{}", served.log("device-1"));
    assert!(served.log("device-1").contains("--memory-limit is 64.0 kB"), "{}", served.log("device-1"));
    let wrong = served.device(2, &["--model", "."]).end();
    assert!(wrong.is_some_and(|code| code != 0));
    scratch.undertone(&["join", "http://x", "--state", "nobody"]).assert().code(2);
    scratch.undertone(&["join", "https://127.0.0.1:1", "--state", "nobody"]).assert().code(2);
    scratch.undertone(&["enroll", "small-shards/server", "--node", "99"]).assert().code(2);
    scratch.undertone(&["serve", "tiny.toml", "--state", "small-shards/server"]).assert().code(2);
}

/// The most memory a process has held, in bytes.
#[cfg(target_os = "linux")]
fn peak(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[cfg(target_os = "linux")]
#[test]
fn floods_of_strangers_take_less_than_16_mib() {
    use std::io::Write;
    use std::net::TcpStream;

    let scratch = Scratch::tiny();
    let served = Served::new(&scratch, "flooded", &["method.name=dummy", "run.num-server-rounds=3"]);
    let mut server = served.server();
    while !served.log("server").contains("listening") {
        assert!(server.0.try_wait().unwrap().is_none(), "{}", served.log("server"));
        thread::sleep(Duration::from_millis(5));
    }
    let before = peak(&server);
    let connect = || TcpStream::connect(("127.0.0.1", served.port)).ok();
    let idle: Vec<TcpStream> = (0..2000).filter_map(|_| connect()).collect();
    // Records and handshakes that announce much and bring little, and plain noise.
    for head in
        [[22u8, 3, 1, 0x40, 0], [22, 3, 1, 0xff, 0xff], [0x47, 0x45, 0x54, 0x20, 0x2f], [22, 3, 3, 0, 1]]
    {
        for mut stream in (0..200).filter_map(|_| connect()) {
            // A server that hangs up at once is what is hoped for.
            let _ = stream.write_all(&head).and_then(|()| stream.write_all(&[1; 4096]));
        }
    }
    let grown = peak(&server).saturating_sub(before);
    assert!(grown < 16 << 20, "it grew by {grown} bytes under {} connections", idle.len());
    drop(idle);
    let mut devices = served.devices();
    assert_eq!(server.end(), Some(0), "{}", served.log("server"));
    for device in &mut devices {
        assert_eq!(device.end(), Some(0));
    }
}
