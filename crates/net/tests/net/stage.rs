//! A server and devices, each in threads of this process, with folders of their own.

use base::{Node, Seed};
use federation::{CohortConfig, Fact, Federation, Machine, Member, Plan, Record, Status};
use methods::{Assembly, Setup};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tempfile::TempDir;
use undertone_net::device::channel::Url;
use undertone_net::device::{DeviceConfig, DeviceNews, JoinError, Patience, brief, enroll, live};
use undertone_net::host::Rested;
use undertone_net::identity::Wallet;
use undertone_net::protocol::{Role, Token};
use undertone_net::{Authority, Registry, ServeError, ServerConfig, ServerNews, serve};

/// A federation of the `dummy` method: after the run, coordinate i holds how often device i was counted.
#[derive(Clone)]
pub struct Dummy {
    pub devices: u32,
    pub rounds: u32,
    pub payload: u32,
    pub cohort: CohortConfig,
}

impl Dummy {
    pub fn new(devices: u32, rounds: u32) -> Dummy {
        Dummy { devices, rounds, payload: 1000, cohort: CohortConfig::default() }
    }

    pub fn assemble(&self) -> Assembly {
        let member = |node| Member {
            node: Node(node),
            class: "test".into(),
            flops_per_s: 1e12,
            memory_bytes: 1 << 40,
            up_bytes_per_s: 1e9,
            down_bytes_per_s: 1e9,
            examples: 1,
        };
        let plan = Plan {
            rounds: self.rounds,
            cohort: self.cohort.clone(),
            devices_expected: self.devices,
            replay: None,
        };
        let options = toml::toml! { flops = 1 bytes = 1 }.clone();
        let payload = toml::Value::Integer(i64::from(self.payload));
        let options = options.into_iter().chain([("payload".to_owned(), payload)]).collect();
        let devices = (1..=self.devices).map(member).collect();
        let setup = Setup {
            server: member(0),
            devices,
            plan,
            seed: Seed(7),
            options,
            work: None,
            keep: methods::Keep::default(),
        };
        (methods::find("dummy").unwrap().assemble)(setup).unwrap()
    }

    fn federation(&self) -> Federation {
        self.assemble().federation
    }
}

/// The folders of a server and its devices.
pub struct Stage {
    pub scratch: TempDir,
    pub dummy: Dummy,
}

/// A thread that can be asked to stop.
pub struct Actor<T> {
    interrupt: Arc<AtomicBool>,
    thread: JoinHandle<T>,
}

impl<T> Actor<T> {
    pub fn start(act: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> Actor<T>
    where
        T: Send + 'static,
    {
        let interrupt = Arc::new(AtomicBool::new(false));
        let flag = interrupt.clone();
        Actor { interrupt, thread: thread::spawn(move || act(&flag)) }
    }

    pub fn end(self) -> T {
        self.thread.join().unwrap()
    }

    pub fn interrupt(self) -> T {
        self.interrupt.store(true, Ordering::SeqCst);
        self.end()
    }
}

/// A server at work.
pub struct Server {
    pub address: SocketAddr,
    pub records: Arc<Mutex<Vec<Record>>>,
    pub actor: Actor<Result<Rested, ServeError>>,
}

impl Server {
    pub fn url(&self) -> Url {
        url(self.address)
    }
}

pub fn url(address: SocketAddr) -> Url {
    Url::parse(&format!("https://{address}")).unwrap()
}

/// Patience for a network that answers within milliseconds.
pub fn brisk() -> Patience {
    Patience {
        first: Duration::from_millis(10),
        longest: Duration::from_millis(100),
        stall: Duration::from_secs(2),
    }
}

impl Stage {
    pub fn new(dummy: Dummy) -> Stage {
        Stage { scratch: tempfile::tempdir().unwrap(), dummy }
    }

    pub fn server_folder(&self) -> PathBuf {
        self.scratch.path().join("server")
    }

    pub fn device_folder(&self, node: u32) -> PathBuf {
        self.scratch.path().join(format!("device-{node}"))
    }

    pub fn config(&self, listen: SocketAddr) -> ServerConfig {
        let mut config = ServerConfig::new(self.server_folder(), listen);
        (config.devices, config.rounds) = (self.dummy.devices, self.dummy.rounds);
        config.wait = Duration::from_secs(5);
        config
    }

    /// Begin to serve, on any port.
    pub fn serve(&self) -> Server {
        self.serve_with(self.config("127.0.0.1:0".parse().unwrap()))
    }

    pub fn serve_with(&self, config: ServerConfig) -> Server {
        let (dummy, records) = (self.dummy.clone(), Arc::new(Mutex::new(Vec::new())));
        let (tell, heard) = channel();
        let kept = records.clone();
        let actor = Actor::start(move |interrupt| {
            let federation = dummy.federation();
            let build = || (federation.build)(base::SERVER);
            let mut sink = |news: ServerNews| match news {
                ServerNews::Listening(address) => tell.send(address).unwrap(),
                // Most of a trace, and no test asks for them.
                ServerNews::Record(Record {
                    fact: Fact::Sent { .. } | Fact::Ran { .. } | Fact::Counted { .. },
                    ..
                }) => {}
                ServerNews::Record(record) => kept.lock().unwrap().push(record.clone()),
            };
            serve(&build, config, &mut sink, interrupt)
        });
        let address = wait_for(&heard);
        Server { address, records, actor }
    }

    pub fn token(&self, node: u32, role: Role, lifetime_s: u64) -> Token {
        let authority = Authority::open(&self.server_folder()).unwrap();
        let registry = Registry::open(&self.server_folder()).unwrap();
        registry.issue(Node(node), role, lifetime_s, authority.certificate()).unwrap()
    }

    /// Enroll a device with a token of its own.
    pub fn enroll(&self, node: u32, at: &Url) -> Wallet {
        let token = self.token(node, Role::Device, 600);
        let wallet = Wallet::open(&self.device_folder(node)).unwrap();
        for attempt in 0.. {
            match enroll(&wallet, at, &token, brisk()) {
                Ok(_) => break,
                Err(error) => assert!(attempt < 500, "{error}"),
            }
        }
        wallet
    }

    /// A device that takes part, once it is enrolled.
    pub fn join(&self, node: u32, at: &Url) -> Actor<Result<Rested, JoinError>> {
        let (folder, dummy, at) = (self.device_folder(node), self.dummy.clone(), at.clone());
        Actor::start(move |interrupt| join(&folder, &dummy, &at, interrupt))
    }

    /// How often each device was counted, and how the run ended.
    pub fn outcome(&self, rested: &Rested) -> (Option<Status>, Vec<f32>) {
        let trained = (self.dummy.assemble().trained)(&rested.snapshot).unwrap();
        (rested.status.clone(), trained.to_f32(self.dummy.devices as usize).unwrap())
    }
}

/// Wait for something that comes within a minute.
pub fn wait_for<T>(heard: &Receiver<T>) -> T {
    heard.recv_timeout(Duration::from_secs(60)).expect("it comes within a minute")
}

pub fn join(folder: &Path, dummy: &Dummy, at: &Url, interrupt: &AtomicBool) -> Result<Rested, JoinError> {
    let wallet = Wallet::open(folder)?;
    let card = wallet.card()?.expect("it is enrolled");
    let mut news = |_: DeviceNews| {};
    let identity = wallet.identity(card.clone())?;
    let brief = brief(&identity, at, brisk(), &mut news, interrupt)?;
    let federation = dummy.federation();
    let build = || -> Box<dyn Machine> { (federation.build)(brief.node) };
    let config = DeviceConfig { patience: brisk(), ..DeviceConfig::new(folder.to_owned()) };
    live(&build, (wallet, card), at, &brief, config, &mut news, interrupt)
}

/// How often each fact of a kind was recorded.
pub fn count(records: &Mutex<Vec<Record>>, is: impl Fn(&Fact) -> bool) -> usize {
    records.lock().unwrap().iter().filter(|record| is(&record.fact)).count()
}
