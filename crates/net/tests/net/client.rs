//! A peer that says whatever a test wants, with or without a certificate.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::runtime::Runtime;
use undertone_net::device::channel::{Channel, ChannelError, Url};
use undertone_net::identity::{Identity, Wallet};
use undertone_net::protocol::{OFFSET, SEQUENCE, SIGNATURE, Token};
use undertone_net::tls;

pub struct Client {
    runtime: Runtime,
    channel: Channel,
    identity: Option<Identity>,
    pub sequence: u64,
}

/// What a server answered: its status, its word for what is wrong, and the body.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    pub status: u16,
    pub error: String,
    pub body: Bytes,
    pub offset: Option<u64>,
}

/// The server hung up while it was still being spoken to, which is how it ends a body that is too long.
pub const CUT: (u16, &str) = (0, "cut");

impl Said {
    /// The status and the word.
    pub fn short(&self) -> (u16, &str) {
        (self.status, &self.error)
    }
}

impl Client {
    fn new(url: Url, tls: std::sync::Arc<rustls::ClientConfig>, identity: Option<Identity>) -> Client {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let channel = Channel::new(url, tls, Duration::from_secs(5));
        Client { runtime, channel, identity, sequence: 0 }
    }

    /// An enrolled device.
    pub fn of(wallet: &Wallet, at: &Url) -> Client {
        let identity = wallet.identity(wallet.card().unwrap().unwrap()).unwrap();
        Client::new(at.clone(), identity.tls.clone(), Some(identity))
    }

    /// Somebody who knows the server and has no certificate.
    pub fn stranger(token: &Token, at: SocketAddr) -> Client {
        Client::new(crate::stage::url(at), tls::enrolling(token).unwrap(), None)
    }

    pub fn sign(&self, method: &str, path: &str, body: &[u8], sequence: u64) -> String {
        self.identity.as_ref().unwrap().sign(method, path, body, sequence)
    }

    /// Send a request as it is.
    pub fn raw(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Said, ChannelError> {
        let mut request = Request::builder().method(method).uri(path).header("host", "test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
        let Client { runtime, channel, .. } = self;
        runtime.block_on(async {
            match channel.request(request, Duration::ZERO).await {
                Ok(answer) => {
                    let (status, offset) = (answer.status.as_u16(), answer.header(OFFSET));
                    Ok(Said { status, error: String::new(), offset, body: answer.whole().await? })
                }
                Err(ChannelError::Refused(status, problem, _)) => {
                    let (status, error) = (status.as_u16(), problem.error);
                    Ok(Said { status, error, body: Bytes::new(), offset: None })
                }
                Err(error) => Err(error),
            }
        })
    }

    /// Send a request that is signed with the next number.
    pub fn signed(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Said {
        self.sequence += 1;
        let (sequence, signature) =
            (self.sequence.to_string(), self.sign(method, path, body, self.sequence));
        let own = [(SEQUENCE, sequence.as_str()), (SIGNATURE, signature.as_str())];
        match self.raw(method, path, &[headers, &own].concat(), body) {
            Err(ChannelError::Broken(_)) => {
                Said { status: CUT.0, error: CUT.1.to_owned(), body: Bytes::new(), offset: None }
            }
            said => said.unwrap(),
        }
    }
}
