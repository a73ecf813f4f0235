//! The balancer's side of its control socket: lines in, lines out, and the descriptors of a handover.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use mio::net::UnixStream;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::{Reply, Request};

/// Longest line accepted: a table of 100,000 backends.
const MAX_LINE: usize = 32 << 20;

/// One connection of a daemon or a successor.
pub struct Control {
    /// The socket.
    pub stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Control {
    /// Wraps a connection.
    pub fn new(stream: UnixStream) -> Self {
        Control { stream, input: Vec::new(), output: Vec::new() }
    }

    /// The requests that have come in whole. An error ends the connection.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Vec<Request>> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.input.len() > MAX_LINE {
                return Err(io::Error::other("line too long"));
            }
        }
        let mut requests = Vec::new();
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            requests.push(serde_json::from_slice(&line).map_err(io::Error::other)?);
        }
        Ok(requests)
    }

    /// Sends an answer, or as much of it as the socket takes now.
    pub fn reply(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply).map_err(io::Error::other)?;
        line.push(b'\n');
        self.output.extend_from_slice(&line);
        self.flush()
    }

    /// Sends what is left.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(length) => {
                    self.output.drain(..length);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends descriptors, one a message.
    pub fn send_sockets(&mut self, sockets: &[RawFd]) -> io::Result<()> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        // The successor reads as fast as we write, and there may be more of them than the socket's buffer takes.
        fcntl(&self.stream, FcntlArg::F_SETFL(OFlag::empty()))?;
        let patience = nix::sys::time::TimeVal::new(2, 0);
        nix::sys::socket::setsockopt(&self.stream, nix::sys::socket::sockopt::SendTimeout, &patience)?;
        // What is left of the line comes first.
        self.flush()?;
        if !self.output.is_empty() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        for socket in sockets {
            let message = [ControlMessage::ScmRights(std::slice::from_ref(socket))];
            sendmsg::<()>(self.stream.as_raw_fd(), &[IoSlice::new(b"s")], &message, MsgFlags::empty(), None)?;
        }
        fcntl(&self.stream, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(())
    }
}

/// Asks the balancer behind `path` for its sockets: names and descriptors. The old one serves its open connections to
/// their end and goes.
pub fn take_over(path: &Path) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(3)))?;
    stream.set_write_timeout(Some(std::time::Duration::from_secs(3)))?;
    let mut line = serde_json::to_vec(&Request::Handover).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    // Byte by byte: what follows the line belongs to the descriptors.
    let mut answer = Vec::new();
    let mut byte = [0];
    while byte[0] != b'\n' && answer.len() < MAX_LINE {
        stream.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    let reply: Reply = serde_json::from_slice(&answer).map_err(io::Error::other)?;
    reply.sockets.into_iter().map(|name| Ok((name, receive(&stream)?))).collect()
}

#[allow(unsafe_code, reason = "the kernel has just made this descriptor for us; nobody else knows its number")]
fn receive(stream: &std::os::unix::net::UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part
            && let Some(descriptor) = descriptors.first()
        {
            return Ok(unsafe { OwnedFd::from_raw_fd(*descriptor) });
        }
    }
    Err(io::Error::other("a descriptor is missing"))
}
