//! Frames over a connection: a length of four bytes, then JSON. Each side beats, and a side that is silent is gone.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::protocol::Frame;
use crate::model::{Error, Kind, Result};

/// How often a side gives a sign of life.
pub const BEAT: Duration = Duration::from_millis(500);
/// A side that is silent for this long is gone: sooner than a daemon loses its lead, so that nobody listens any more to one
/// that was stopped for longer than its lease.
pub const SILENT: Duration = Duration::from_millis(2500);
/// The longest frame, in bytes.
const LONGEST: usize = 64 << 20;
/// How much is written before the other side has to have taken it, in bytes.
const PART: usize = 64 << 10;
/// How many frames may wait to be written.
const WAITING: usize = 1024;

fn broken(error: impl std::fmt::Display) -> Error {
    Error::new(Kind::Unavailable, "agent's connection", "broke").cause(error).retry(true)
}

/// Writes frames, with beats between them, until the receiver is closed or the connection breaks. The sender's end.
pub fn writer<W: AsyncWrite + Unpin + Send + 'static>(mut to: W) -> mpsc::Sender<Frame> {
    let (sender, mut frames) = mpsc::channel::<Frame>(WAITING);
    tokio::spawn(async move {
        loop {
            let frame = match tokio::time::timeout(BEAT, frames.recv()).await {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(_) => Frame::Beat,
            };
            let Ok(mut bytes) = serde_json::to_vec(&frame) else { continue };
            if bytes.len() > LONGEST {
                tracing::error!(bytes = bytes.len(), "a message is too large, and is not sent");
                // Whoever waits for it is told.
                let (Frame::Reply { id, .. } | Frame::Answer { id, .. }) = frame else { continue };
                let error = Error::new(Kind::Exhausted, "answer", format!("is larger than {LONGEST} bytes"));
                let told = match frame {
                    Frame::Reply { .. } => Frame::Reply { id, result: Err(error) },
                    _ => Frame::Answer { id, result: Err(error) },
                };
                let Ok(instead) = serde_json::to_vec(&told) else { continue };
                bytes = instead;
            }
            let Ok(length) = u32::try_from(bytes.len()) else { continue };
            let bytes = [&length.to_be_bytes()[..], &bytes].concat();
            for part in bytes.chunks(PART) {
                let write = async {
                    to.write_all(part).await?;
                    to.flush().await
                };
                // Whoever does not read is as good as gone.
                if !matches!(tokio::time::timeout(SILENT, write).await, Ok(Ok(()))) {
                    return;
                }
            }
        }
    });
    sender
}

/// Reads frames.
pub struct Reader<R>(pub R);

impl<R: AsyncRead + Unpin> Reader<R> {
    /// The next one that is no beat. An error when the other side is gone or silent. What is of a later version, and not
    /// known here, is passed over.
    pub async fn next(&mut self) -> Result<Frame> {
        loop {
            match serde_json::from_value(self.read().await?) {
                Ok(Frame::Beat) => {}
                Ok(frame) => return Ok(frame),
                Err(error) => tracing::debug!(%error, "a message that this version does not know"),
            }
        }
    }

    async fn read(&mut self) -> Result<Value> {
        let length = self.take(4).await?;
        let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        if length > LONGEST {
            return Err(broken(format!("a frame of {length} bytes")));
        }
        let bytes = self.take(length).await?;
        serde_json::from_slice(&bytes).map_err(broken)
    }

    // So many bytes. They may take their time, but not be silent; and what a length promises costs nothing before it comes.
    async fn take(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let missing = (length - bytes.len()) as u64;
            let mut rest = (&mut self.0).take(missing);
            let read = tokio::time::timeout(SILENT, rest.read_buf(&mut bytes)).await;
            match read.map_err(|_| broken(format!("nothing was heard for {} ms", SILENT.as_millis())))? {
                Ok(0) => return Err(broken("it ended")),
                Ok(_) => {}
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn frames_beats_and_silence() {
        let (near, far) = tokio::io::duplex(64);
        let sender = writer(near);
        let mut reader = Reader(far);
        let daemons = vec!["10.0.0.1:8377".to_owned(); 20];
        sender.send(Frame::Daemons(daemons.clone())).await.unwrap();
        assert!(matches!(reader.next().await, Ok(Frame::Daemons(read)) if read == daemons));
        // Beats alone keep it up; they are not shown.
        let (sent, later) = (sender.clone(), SILENT * 3);
        tokio::spawn(async move {
            tokio::time::sleep(later).await;
            let _ = sent.send(Frame::Balancer).await;
            // Open, and silent: as of a process that was stopped.
            std::future::pending::<()>().await;
        });
        assert!(matches!(reader.next().await, Ok(Frame::Balancer)));
        drop(sender);

        let (mut near, far) = tokio::io::duplex(64);
        let mut reader = Reader(far);
        assert_eq!(reader.next().await.unwrap_err().kind, Kind::Unavailable, "nothing comes");
        near.write_all(&[0xff; 4]).await.unwrap();
        assert!(reader.next().await.unwrap_err().to_string().contains("a frame of 4294967295 bytes"));
        let mut reader = Reader(&b"\0\0\0\x0d{\"later\":\"x\"}\0\0\0\x0a\"balancer\""[..]);
        assert!(matches!(reader.next().await, Ok(Frame::Balancer)), "what is not known is passed over");
        let mut reader = Reader(&b"\0\0\0\x09{}"[..]);
        assert!(reader.next().await.unwrap_err().to_string().contains("it ended"));
    }
}
