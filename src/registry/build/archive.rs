//! A layer as a tar archive.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::layer::{Item, PLAIN, Places, TarSource, What, above, failed, found, inner, joined, opened_tar};
use super::tree::{Folder, clean};
use crate::model::{Error, Result};
use crate::registry::digest::{Algorithm, Hasher};

/// What goes through is counted and hashed.
pub struct Hashing<W> {
    /// Where it goes.
    pub inner: W,
    /// Of all of it.
    pub hasher: Hasher,
    /// Bytes so far.
    pub size: u64,
}

impl<W> Hashing<W> {
    /// On the way to this.
    pub fn new(inner: W) -> Self {
        Hashing { inner, hasher: Hasher::new(Algorithm::Sha256), size: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A layer that is being written.
pub struct Writer<'a, W: Write> {
    /// Where to.
    pub tar: tar::Builder<W>,
    /// Where its folders are.
    pub places: &'a Places,
    /// All times, in seconds since 1970.
    pub time: u64,
    /// Counts what went into it.
    pub done: &'a AtomicU64,
    /// Folders that were written.
    pub written: BTreeSet<String>,
}

// A file, as long as it was when it was looked at.
struct Counted<'a, R>(R, u64, &'a AtomicU64);

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, part: &mut [u8]) -> io::Result<usize> {
        let most = part.len().min(usize::try_from(self.1).unwrap_or(usize::MAX));
        let count = self.0.read(&mut part[..most])?;
        if count == 0 && most > 0 {
            return Err(io::Error::other("became shorter while it was read"));
        }
        self.1 -= count as u64;
        self.2.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl<W: Write> Writer<'_, W> {
    fn header(&self, kind: tar::EntryType, mode: u32, owner: (u64, u64), size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(self.time);
        header.set_size(size);
        header
    }

    // A folder and those that it is in, each once: as the image below has them, else plain.
    fn folders(&mut self, path: &str, asked: &str, own: Folder) -> Result<()> {
        let below = found(self.places, asked).folders;
        let mut at = 0;
        while at < path.len() {
            let end = path[at..].find('/').map_or(path.len(), |next| at + next);
            let folder = &path[..end];
            at = end + 1;
            if !self.written.insert(folder.to_owned()) {
                continue;
            }
            let known = below.iter().find(|(known, _)| known == folder).map(|(_, folder)| *folder);
            let is_it = end == path.len();
            let Folder { mode, uid, gid } = known.unwrap_or(if is_it { own } else { PLAIN });
            let mut header = self.header(tar::EntryType::Directory, mode & 0o7777, (uid, gid), 0);
            self.append(&mut header, &format!("{folder}/"), io::empty())?;
        }
        Ok(())
    }

    fn append(&mut self, header: &mut tar::Header, path: &str, from: impl Read) -> Result<()> {
        let failed = |error: io::Error| Error::io(format!("copy to /{path}"), "write it into the layer", &error);
        self.tar.append_data(header, path, from).map_err(failed)
    }

    fn link(&mut self, header: &mut tar::Header, path: &str, to: &Path) -> Result<()> {
        let failed = |error: io::Error| Error::io(format!("copy to /{path}"), "write it into the layer", &error);
        self.tar.append_link(header, path, to).map_err(failed)
    }

    /// A file, folder or link, with the folders that it is in.
    pub fn item(&mut self, path: &str, item: &Item) -> Result<()> {
        let (uid, gid) = item.owner;
        match &item.what {
            What::Folder => return self.folders(path, &item.path, Folder { mode: item.mode, uid, gid }),
            _ => self.folders(above(path).0, above(&item.path).0, PLAIN)?,
        }
        match &item.what {
            What::Folder => Ok(()),
            What::File(disk, size) => {
                let file = File::open(disk).map_err(failed(disk, "read it"))?;
                let mut header = self.header(tar::EntryType::Regular, item.mode, item.owner, *size);
                let file = Counted(io::BufReader::with_capacity(256 << 10, file), *size, self.done);
                self.append(&mut header, path, file).map_err(|error| error.cause(disk.display()))
            }
            What::Bytes(bytes) => {
                let mut header = self.header(tar::EntryType::Regular, item.mode, item.owner, bytes.len() as u64);
                self.done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                self.append(&mut header, path, &**bytes)
            }
            What::Link(to) => {
                let mut header = self.header(tar::EntryType::Symlink, item.mode, item.owner, 0);
                self.link(&mut header, path, to)
            }
        }
    }

    // One of an archive, as far as it belongs to an image: names of users are left out, what is sparse is not.
    fn like(&self, of: &tar::Header) -> io::Result<tar::Header> {
        let kind = match of.entry_type() {
            tar::EntryType::Continuous | tar::EntryType::GNUSparse => tar::EntryType::Regular,
            kind => kind,
        };
        let mut header = self.header(kind, of.mode()? & 0o7777, (of.uid()?, of.gid()?), 0);
        header.set_mtime(of.mtime()?);
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
            header.set_device_major(of.device_major()?.unwrap_or_default())?;
            header.set_device_minor(of.device_minor()?.unwrap_or_default())?;
        }
        Ok(header)
    }

    // An entry before the one that they are of: lines that say how long they are, key and value.
    fn attributes(&mut self, all: &[(String, Vec<u8>)]) -> io::Result<()> {
        let mut lines = Vec::new();
        for (key, value) in all {
            let rest = 3 + key.len() + value.len();
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            lines.extend_from_slice(format!("{length} {key}=").as_bytes());
            lines.extend_from_slice(value);
            lines.push(b'\n');
        }
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_path("PaxHeaders/attributes")?;
        header.set_size(lines.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        self.tar.append(&header, &*lines)
    }

    /// What is in an archive, in its order.
    pub fn tar(&mut self, source: &TarSource) -> Result<()> {
        let failed = failed(&source.file, "read it as a tar archive");
        let mut archive = opened_tar(&source.file)?;
        for entry in archive.entries().map_err(&failed)? {
            let mut entry = entry.map_err(&failed)?;
            let asked = inner(&entry, &source.to);
            let header = entry.header();
            let kind = header.entry_type();
            if kind.is_pax_global_extensions() || (asked.is_empty() && !kind.is_dir()) {
                continue;
            }
            if kind.is_dir() {
                let path = found(self.places, &asked).path;
                let folder = Folder {
                    mode: header.mode().map_err(&failed)?,
                    uid: header.uid().map_err(&failed)?,
                    gid: header.gid().map_err(&failed)?,
                };
                let (up, _) = above(&path);
                self.folders(up, above(&asked).0, PLAIN)?;
                // What the archive says of a folder counts, also of one that is there.
                if !path.is_empty() {
                    self.written.insert(path.clone());
                    let mut header = self.header(kind, folder.mode & 0o7777, (folder.uid, folder.gid), 0);
                    header.set_mtime(entry.header().mtime().map_err(&failed)?);
                    self.append(&mut header, &format!("{path}/"), io::empty())?;
                }
                continue;
            }
            let (folder, name) = above(&asked);
            let at = found(self.places, folder).path;
            self.folders(&at, folder, PLAIN)?;
            let path = joined(&at, name);
            // Capabilities of files and the like.
            let all = attributes(&mut entry).map_err(&failed)?;
            if !all.is_empty() {
                self.attributes(&all).map_err(&failed)?;
            }
            let mut header = self.like(entry.header()).map_err(&failed)?;
            match kind {
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let to = entry.link_name().map_err(&failed)?.unwrap_or_default().into_owned();
                    let to = match kind {
                        tar::EntryType::Symlink => to,
                        _ => {
                            let target = joined(&source.to, &clean(&to.to_string_lossy()));
                            let (folder, name) = above(&target);
                            joined(&found(self.places, folder).path, name).into()
                        }
                    };
                    self.link(&mut header, &path, &to)?;
                }
                _ => {
                    let size = entry.size();
                    header.set_size(size);
                    let done = self.done;
                    self.append(&mut header, &path, Counted(entry, size, done))?;
                }
            }
        }
        Ok(())
    }
}

fn attributes(entry: &mut tar::Entry<impl Read>) -> io::Result<Vec<(String, Vec<u8>)>> {
    let Some(all) = entry.pax_extensions()? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for one in all {
        let one = one?;
        if let Ok(key) = one.key()
            && key.starts_with("SCHILY.xattr.")
        {
            found.push((key.to_owned(), one.value_bytes().to_vec()));
        }
    }
    Ok(found)
}
