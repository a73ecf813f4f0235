//! HTTP requests to anybody, with bounded answers.

use std::sync::OnceLock;

use crate::model::units::{Bytes, Duration};
use crate::model::{Error, Kind, Result};

/// What is asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `POST` and the like.
    pub method: String,
    /// The whole address, `http://` or `https://`.
    pub url: String,
    /// Headers by name.
    pub headers: Vec<(String, String)>,
    /// The body, if there is one.
    pub body: Option<Vec<u8>>,
    /// How long all of it may take.
    pub timeout: Duration,
    /// The largest answer that is taken.
    pub max_body: Bytes,
    /// Whether a larger one is cut off; else it is an error.
    pub cut_off: bool,
    /// Whether any certificate will do.
    pub any_certificate: bool,
    /// Whether HTTP/2 is spoken from the first byte on, also without TLS.
    pub http2: bool,
}

impl Request {
    /// How errors call it.
    pub fn subject(&self) -> String {
        format!("http {} {}", self.method, self.url.chars().take(120).collect::<String>())
    }

    /// The method and the whole address, if they are some.
    pub fn parse(&self) -> Result<(reqwest::Method, reqwest::Url)> {
        let method = reqwest::Method::from_bytes(self.method.as_bytes())
            .map_err(|_| Error::new(Kind::Script, self.subject(), "unknown method"))?;
        let wrong = |why: String| {
            Error::new(Kind::Script, self.subject(), why)
                .help("write the whole address: \"http://127.0.0.1:8080/path\"")
        };
        let url: reqwest::Url = self.url.parse().map_err(|error| wrong(format!("is no address: {error}")))?;
        match url.scheme() {
            "http" | "https" if url.has_host() => Ok((method, url)),
            _ => Err(wrong("is no address of the web".into())),
        }
    }

    /// The error for an answer that is too large.
    pub fn too_large(&self) -> Error {
        let message = format!("the answer is larger than {}", self.max_body);
        Error::new(Kind::Exhausted, self.subject(), message).help("raise max_body")
    }
}

/// What was answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Headers by name, in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The whole body.
    pub body: Vec<u8>,
}

/// The one client of this process: connections are kept between calls.
pub fn client() -> Result<reqwest::Client> {
    static CLIENT: OnceLock<Result<reqwest::Client>> = OnceLock::new();
    CLIENT.get_or_init(|| made(|builder| builder)).clone()
}

// The same for those who show no certificate that anybody vouches for.
fn trusting_client() -> Result<reqwest::Client> {
    static CLIENT: OnceLock<Result<reqwest::Client>> = OnceLock::new();
    CLIENT.get_or_init(|| made(|builder| builder.danger_accept_invalid_certs(true))).clone()
}

fn http2_client(any_certificate: bool) -> Result<reqwest::Client> {
    static CLIENTS: [OnceLock<Result<reqwest::Client>>; 2] = [const { OnceLock::new() }; 2];
    let client = &CLIENTS[usize::from(any_certificate)];
    let more =
        |builder: reqwest::ClientBuilder| builder.http2_prior_knowledge().danger_accept_invalid_certs(any_certificate);
    client.get_or_init(|| made(more)).clone()
}

fn made(more: impl Fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> Result<reqwest::Client> {
    let more = |builder: reqwest::ClientBuilder| {
        let builder = builder
            .user_agent(concat!("neap/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(std::time::Duration::from_secs(10))
            // Whoever is asked may be about to end, and wait for the connections that are open.
            .pool_idle_timeout(std::time::Duration::from_secs(1));
        more(builder)
    };
    built(more).map_err(|error| Error::internal("http", "cannot make a client").cause(error))
}

/// A client. A small image has no certificates of authorities: `http://` is asked all the same, and nobody is believed by `https://`.
pub fn built(more: impl Fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> reqwest::Result<reqwest::Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let believing = more(reqwest::Client::builder()).build();
    believing.or_else(|_| more(reqwest::Client::builder().tls_certs_only([])).build())
}

/// Asks, and reads the answer to its end.
pub async fn fetch(mut asked: Request) -> Result<Response> {
    let (method, url) = asked.parse()?;
    let client = match (asked.http2, asked.any_certificate) {
        (false, false) => client(),
        (false, true) => trusting_client(),
        (true, any) => http2_client(any),
    };
    let mut request = client?.request(method, url).timeout(asked.timeout.std());
    for (name, value) in &asked.headers {
        request = request.header(name, value);
    }
    if let Some(body) = asked.body.take() {
        request = request.body(body);
    }
    let mut answer = request.send().await.map_err(|error| failed(&asked, &error))?;
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| failed(&asked, &error))? {
        body.extend_from_slice(&chunk);
        if body.len() as u64 > asked.max_body.0 {
            if asked.cut_off {
                body.truncate(usize::try_from(asked.max_body.0).unwrap_or(usize::MAX));
                break;
            }
            return Err(asked.too_large());
        }
    }
    let headers = answer.headers().iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    Ok(Response { status: answer.status().as_u16(), headers: headers.collect(), body })
}

fn failed(asked: &Request, error: &reqwest::Error) -> Error {
    let (kind, message) = if error.is_timeout() {
        (Kind::Timeout, format!("no answer within {}", asked.timeout))
    } else if error.is_builder() {
        (Kind::Invalid, "failed".to_owned())
    } else if error.is_connect() {
        (Kind::Unavailable, "cannot connect".to_owned())
    } else {
        (Kind::Unavailable, "failed".to_owned())
    };
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    Error::new(kind, asked.subject(), message).cause(cause)
}
