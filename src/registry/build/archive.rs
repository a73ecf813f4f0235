//! A layer as a tar archive.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::heads::Head;
use super::layer::{Item, TarSource, What, failed, inner, opened_tar, path_of};
use super::tree::{Entry, Folder, PLAIN, Tree, above, clean, joined};
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
    /// The image below it, with what was written.
    pub tree: &'a mut Tree,
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

// Where something goes: the path that it is written under.
fn not_written(path: &str) -> impl Fn(io::Error) -> Error + use<> {
    let path = format!("copy to /{path}");
    move |error| Error::io(path.clone(), "write it into the layer", &error)
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

    // The folder of a path by its real name, and the name in it; the folder is there then.
    fn enter(&mut self, asked: &str) -> Result<String> {
        let (folder, name) = above(asked);
        let folder = self.tree.place(folder).map_err(not_written(asked))?;
        self.folders(&folder, PLAIN)?;
        Ok(joined(&folder, name))
    }

    // A folder by its real name and those that it is in, each once: as the image has them, else plain.
    fn folders(&mut self, path: &str, own: Folder) -> Result<()> {
        let mut at = 0;
        while at < path.len() {
            let end = path[at..].find('/').map_or(path.len(), |next| at + next);
            let folder = &path[..end];
            at = end + 1;
            if self.written.contains(folder) && self.tree.folder(folder).is_some() {
                continue;
            }
            let plain = if end == path.len() { own } else { PLAIN };
            self.folder(folder, self.tree.folder(folder).unwrap_or(plain), self.time)?;
        }
        Ok(())
    }

    fn folder(&mut self, path: &str, folder: Folder, time: u64) -> Result<()> {
        let Folder { mode, uid, gid } = folder;
        let mut header = self.header(tar::EntryType::Directory, mode & 0o7777, (uid, gid), 0);
        header.set_mtime(time);
        self.tar.append_data(&mut header, format!("{path}/"), io::empty()).map_err(not_written(path))?;
        self.tree.put(path, Some(Entry::Folder(Folder { mode: mode & 0o7777, uid, gid })));
        self.written.insert(path.to_owned());
        Ok(())
    }

    // What is there now is no folder any more.
    fn replaced(&mut self, path: &str, link: Option<&str>) {
        self.tree.put(path, link.map(|to| Entry::Link(to.to_owned())));
        self.written.remove(path);
    }

    fn file(&mut self, mut header: tar::Header, path: &str, from: impl Read) -> Result<()> {
        self.tar.append_data(&mut header, path, from).map_err(not_written(path))?;
        self.replaced(path, None);
        Ok(())
    }

    fn link(&mut self, mut header: tar::Header, path: &str, to: &Path) -> Result<()> {
        let is_hard = header.entry_type().is_hard_link();
        self.tar.append_link(&mut header, path, to).map_err(not_written(path))?;
        let text = to.to_string_lossy();
        self.replaced(path, (!is_hard).then_some(&*text));
        Ok(())
    }

    /// A file, folder or link, with the folders that it is in.
    pub fn item(&mut self, item: &Item) -> Result<()> {
        let (uid, gid) = item.owner;
        if let What::Folder = item.what {
            let path = self.tree.place(&item.path).map_err(not_written(&item.path))?;
            return self.folders(&path, Folder { mode: item.mode, uid, gid });
        }
        let path = self.enter(&item.path)?;
        let is_folder = self.tree.folder(&path).is_some();
        let leads = self.tree.place(&path).ok().and_then(|place| self.tree.folder(&place)).is_some();
        // Nobody means to lose a folder with all that is in it; and of a link to one only who names it means the folder.
        if is_folder || (leads && item.is_named) {
            let why = "is a folder of the image that it is built from: end it with / to put something into it";
            return Err(Error::invalid(format!("copy to /{}", item.path), why));
        }
        match &item.what {
            What::Folder => Ok(()),
            What::File(disk, size) => {
                let file = File::open(disk).map_err(failed(disk, "read it"))?;
                let header = self.header(tar::EntryType::Regular, item.mode, item.owner, *size);
                let file = Counted(io::BufReader::with_capacity(256 << 10, file), *size, self.done);
                self.file(header, &path, file).map_err(|error| error.cause(disk.display()))
            }
            What::Bytes(bytes) => {
                let header = self.header(tar::EntryType::Regular, item.mode, item.owner, bytes.len() as u64);
                self.done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                self.file(header, &path, &**bytes)
            }
            What::Link(to) => {
                let header = self.header(tar::EntryType::Symlink, item.mode, item.owner, 0);
                self.link(header, &path, to)
            }
        }
    }

    // One of an archive, as far as it belongs to an image: names of users are left out.
    fn like(&self, head: &Head) -> io::Result<tar::Header> {
        let mut header = self.header(head.kind, head.mode, head.owner, head.size);
        header.set_mtime(head.time);
        if matches!(head.kind, tar::EntryType::Char | tar::EntryType::Block) {
            header.set_device_major(head.device.0)?;
            header.set_device_minor(head.device.1)?;
        }
        Ok(header)
    }

    // An entry before the one that they are of: lines that say how long they are, key and value.
    fn attributes(&mut self, all: &[(Vec<u8>, Vec<u8>)]) -> io::Result<()> {
        if all.is_empty() {
            return Ok(());
        }
        let mut lines = Vec::new();
        for (key, value) in all {
            let rest = 3 + key.len() + value.len();
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            lines.extend_from_slice(format!("{length} ").as_bytes());
            lines.extend_from_slice(key);
            lines.push(b'=');
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
        let mut heads = opened_tar(&source.file)?;
        while let Some(head) = heads.next().map_err(&failed)? {
            let asked = inner(&path_of(&head).unwrap_or_default(), &source.to);
            if asked.is_empty() {
                continue;
            }
            let header = self.like(&head).map_err(&failed)?;
            if head.kind.is_dir() {
                let path = self.tree.place(&asked).map_err(not_written(&asked))?;
                if path.is_empty() {
                    continue;
                }
                self.folders(above(&path).0, PLAIN)?;
                // Capabilities of files and the like.
                self.attributes(&head.attributes).map_err(&failed)?;
                // What the archive says of a folder counts, also of one that is there.
                let (uid, gid) = head.owner;
                self.folder(&path, Folder { mode: head.mode, uid, gid }, head.time)?;
                continue;
            }
            let path = self.enter(&asked)?;
            self.attributes(&head.attributes).map_err(&failed)?;
            let to = String::from_utf8_lossy(&head.link);
            match head.kind {
                tar::EntryType::Symlink => self.link(header, &path, Path::new(&*to))?,
                tar::EntryType::Link => {
                    let target = inner(&clean(&to), &source.to);
                    let (folder, name) = above(&target);
                    let folder = self.tree.place(folder).map_err(not_written(&asked))?;
                    self.link(header, &path, Path::new(&joined(&folder, name)))?;
                }
                _ => {
                    let done = self.done;
                    self.file(header, &path, Counted(heads.data(), head.size, done))?;
                }
            }
        }
        Ok(())
    }
}
