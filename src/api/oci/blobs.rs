//! Blobs as they are asked for: whole, or a part.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::Method;
use hyper::body::Frame;
use hyper::header;
use tokio::sync::mpsc;

use super::manifests::matches;
use super::{Answer, Body, Call, DIGEST, empty, full, put, response};
use crate::registry::cache::Content;
use crate::registry::digest::Digest;
use crate::registry::name::Repository;
use crate::registry::refused::{Code, Refused};

/// What is read at a time, in bytes.
const PART: u64 = 512 * 1024;
/// How long a client may take nothing.
const PATIENCE: Duration = Duration::from_secs(120);

pub async fn answer(call: &Call, repository: &Repository, digest: &Digest) -> Answer {
    match call.method {
        Method::DELETE => {
            call.registry.delete_blob(repository, digest).await?;
            return Ok(response(202, empty()));
        }
        Method::HEAD => {
            let size = call.registry.size_of(repository, digest).await?;
            let mut answer = response(200, empty());
            put(&mut answer, header::CONTENT_LENGTH, size.to_string());
            describe(&mut answer, digest);
            return Ok(answer);
        }
        _ => {}
    }
    let content = call.registry.open_blob(repository, digest).await?;
    let size = content.size();
    if call.header(header::IF_NONE_MATCH).is_some_and(|known| matches(known, digest)) {
        let mut answer = response(304, empty());
        describe(&mut answer, digest);
        return Ok(answer);
    }
    // A part of something else is of no use.
    let is_same = call.header(header::IF_RANGE).is_none_or(|known| matches(known, digest));
    let wanted = call.header(header::RANGE).filter(|_| is_same).map(|text| part(text, size));
    let (status, range) = match wanted {
        None | Some(Wanted::All) => (200, 0..size),
        Some(Wanted::Part(range)) => (206, range),
        Some(Wanted::Nothing) => {
            let why = format!("the blob has {size} bytes");
            let refused = Refused::new(Code::SizeInvalid, why).about(digest.as_str()).status_of(416);
            let mut answer = super::told(&refused);
            put(&mut answer, header::CONTENT_RANGE, format!("bytes */{size}"));
            return Ok(answer);
        }
    };
    let length = range.end - range.start;
    call.registry.metrics().sent(length);
    let said = format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1));
    let mut answer = response(status, body(content, range).await?);
    put(&mut answer, header::CONTENT_LENGTH, length.to_string());
    if status == 206 {
        put(&mut answer, header::CONTENT_RANGE, said);
    }
    describe(&mut answer, digest);
    Ok(answer)
}

fn describe(answer: &mut hyper::Response<Body>, digest: &Digest) {
    put(answer, header::CONTENT_TYPE, "application/octet-stream");
    put(answer, header::ACCEPT_RANGES, "bytes");
    put(answer, header::ETAG, format!("\"{digest}\""));
    put(answer, header::CACHE_CONTROL, "max-age=31536000, immutable");
    put(answer, DIGEST, digest.as_str());
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    Part(Range<u64>),
    Nothing,
}

// What of so many bytes is asked for. Several parts at once, and what is no range, mean all of it (RFC 9110, 14.2).
fn part(text: &str, size: u64) -> Wanted {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
        return Wanted::All;
    };
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let range = match (number(first), number(last)) {
        // One that ends before it begins has nothing in it.
        (Some(first), Some(last)) => first..last.saturating_add(1).min(size),
        (Some(first), None) if last.is_empty() => first..size,
        (None, Some(length)) if first.is_empty() => size.saturating_sub(length)..size,
        _ => return Wanted::All,
    };
    if range.start < range.end { Wanted::Part(range) } else { Wanted::Nothing }
}

async fn read(file: Arc<File>, range: Range<u64>) -> io::Result<Bytes> {
    let broken = |_| io::Error::other("the registry broke off");
    tokio::task::spawn_blocking(move || {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(Bytes::from(bytes))
    })
    .await
    .map_err(broken)?
}

// Little is read at once; of more, the next part is read while one goes. Of what still comes, what is there.
async fn body(content: Content, range: Range<u64>) -> Result<Body, Refused> {
    let (file, fetch) = match content {
        Content::Whole(file, _) => (Arc::new(file), None),
        Content::Coming(fetch) => (fetch.file(), Some(fetch)),
    };
    if fetch.is_none() && range.end - range.start <= PART {
        let bytes = read(file, range).await.map_err(|error| Refused::io("read a blob", &error))?;
        return Ok(full(bytes));
    }
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut at = range.start;
        while at < range.end {
            let until = match &fetch {
                None => Ok(range.end),
                // Nobody waits for a client that is gone.
                Some(fetch) => tokio::select! {
                    until = fetch.until(at) => until,
                    () = sender.closed() => return,
                },
            };
            let (part, end) = match until {
                Ok(until) => {
                    let end = (at + PART).min(range.end).min(until);
                    (read(file.clone(), at..end).await, end)
                }
                Err(error) => (Err(error), at),
            };
            let is_broken = part.is_err();
            let sent = tokio::time::timeout(PATIENCE, sender.send(part)).await;
            if is_broken || !matches!(sent, Ok(Ok(()))) {
                return;
            }
            at = end;
        }
    });
    let parts = futures_util::stream::unfold(receiver, |mut receiver: mpsc::Receiver<io::Result<Bytes>>| async move {
        Some((receiver.recv().await?, receiver))
    });
    Ok(StreamBody::new(parts.map(|part| part.map(Frame::data))).boxed_unsync())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_what_is_asked_for() {
        for (text, wanted) in [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=2-4", Wanted::Part(2..5)),
            ("bytes=2-", Wanted::Part(2..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-99", Wanted::Part(0..10)),
            ("bytes=5-99999999999999999999999", Wanted::Part(5..10)),
            ("bytes=10-", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=4-2", Wanted::Nothing),
            ("bytes=0-1,3-4", Wanted::All),
            ("bytes=+1-2", Wanted::All),
            ("lines=0-1", Wanted::All),
            ("bytes=-", Wanted::All),
        ] {
            assert_eq!(part(text, 10), wanted, "{text}");
        }
        assert_eq!(part("bytes=0-", 0), Wanted::Nothing);
    }
}
