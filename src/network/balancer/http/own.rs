//! What a client is told by the balancer itself, and how its connection ends.

use std::time::Duration;

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::exchange::{After, Exchange};
use super::h1::{HEAD, STILL, Session};
use super::head::{Bad, Body};
use super::rewrite;
use super::routes::Way;
use crate::model::route::RouteSpec;
use crate::network::balancer::hook::RoutedRequest;

/// What is still read of a body that nobody wants, in bytes: whoever is cut off while sending may not hear why.
const UNHEARD: usize = 8 << 20;

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    pub(super) async fn fail(&mut self, exchange: &Exchange, status: u16, why: &str) -> After {
        exchange.note(status);
        self.tell(status, why, exchange.keeps).await
    }

    pub(super) async fn tell(&mut self, status: u16, why: &str, keeps: bool) -> After {
        self.tell_with(status, &[], why, keeps).await
    }

    // Answers by ourselves; the connection goes on if all of the request was here.
    pub(super) async fn tell_with(&mut self, status: u16, fields: &[(&str, &str)], why: &str, keeps: bool) -> After {
        let is_whole = match self.head.body {
            _ if self.has_begun => None,
            Body::None => Some(self.head.length),
            Body::Length(length) => {
                let end = self.head.length as u64 + length;
                (self.input.len() as u64 >= end && status != 413).then_some(end as usize)
            }
            Body::Chunked | Body::ToEnd => None,
        };
        let keeps = keeps && self.head.keeps && is_whole.is_some() && !self.worker.is_leaving();
        let with_body = self.head.method.of(&self.input) != b"HEAD";
        self.out.clear();
        rewrite::own(&mut self.out, status, fields, &format!("{why}\n"), keeps, with_body);
        self.input.advance(is_whole.unwrap_or(self.input.len()).min(self.input.len()));
        self.watch.allow(STILL);
        let written = async {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await
        };
        match self.watch.bound(written).await {
            Ok(Ok(())) if keeps => After::Next,
            _ => After::Close,
        }
    }

    /// What is asked for, and who asks.
    pub(super) fn said(&self, spec: &RouteSpec) -> ([String; 4], String) {
        let bytes = &self.input[..self.head.length];
        let text = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
        let chain = self.head.values(bytes, "x-forwarded-for");
        let client = rewrite::client(spec, &self.from, chain.as_deref());
        let agent = self.head.value(bytes, "user-agent").map(text).unwrap_or_default();
        let [method, host, target] =
            [self.head.method, self.head.host, self.head.target].map(|part| text(part.of(bytes)));
        ([method, host, target, client], agent)
    }

    /// The request, as a script is shown it.
    pub(super) fn shown(&self, way: &Way) -> RoutedRequest {
        let bytes = &self.input[..self.head.length];
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let chain = self.head.values(bytes, "x-forwarded-for");
        let fields = self.head.fields.iter();
        RoutedRequest::of(
            text(self.head.method.of(bytes)),
            self.head.host.of(bytes),
            self.head.target.of(bytes),
            rewrite::client(&way.spec, &self.from, chain.as_deref()),
            self.from.is_secure,
            fields.map(|field| (text(field.name.of(bytes)), field.value.of(bytes).to_vec())).collect(),
        )
    }

    pub(super) async fn refuse(&mut self, bad: Bad) {
        self.from.tally.note_malformed();
        self.out.clear();
        rewrite::own(&mut self.out, bad.status, &[], &format!("{}\n", bad.why), false, true);
        self.watch.allow(HEAD);
        let _ = self.watch.bound(self.stream.write_all(&self.out)).await;
        self.farewell().await;
    }

    // An answer would be lost with a reset if what the client still sends came to a closed socket: it is read for a moment.
    pub(super) async fn farewell(&mut self) {
        self.watch.allow(Duration::from_secs(1));
        let rest = async {
            let _ = self.stream.shutdown().await;
            let mut left = UNHEARD;
            while left > 0 {
                self.input.clear();
                self.input.reserve(16 * 1024);
                match self.stream.read_buf(&mut self.input).await {
                    Ok(0) | Err(_) => return,
                    Ok(came) => left = left.saturating_sub(came),
                }
            }
        };
        let _ = self.watch.bound(rest).await;
    }
}
