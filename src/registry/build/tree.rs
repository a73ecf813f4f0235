//! The folders and links of an image, so that what is put upon it lands where it would in a container: a path may lead through a link
//! (`/bin` is `usr/bin`), and a folder that is there keeps its mode and owner.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::read::MultiGzDecoder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::heads::Heads;

/// Most folders and links of an image, and what their names may take, in bytes.
const MOST: usize = 200_000;
const NAMES: usize = 16 << 20;
/// What the layers of an image hold altogether, at most, in bytes.
const LARGEST: u64 = 32 << 30;
/// Links that one path may lead through.
const LINKS: usize = 40;
/// What takes something away that a layer below has.
pub const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// A folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Folder {
    /// Its mode.
    pub mode: u32,
    /// Whose it is.
    pub uid: u64,
    /// Whose group's.
    pub gid: u64,
}

/// One that nobody has told of.
pub const PLAIN: Folder = Folder { mode: 0o755, uid: 0, gid: 0 };

/// A folder, or a link with where it leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Entry {
    /// The one.
    Folder(Folder),
    /// The other.
    Link(String),
}

/// Folders and links by their paths, without a slash in front.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Tree(BTreeMap<String, Entry>);

/// A path in an image without a slash in front or behind it, without `.` and `..`.
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A name in a folder.
pub fn joined(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// The folder that a path is in, and its name there.
pub fn above(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Reads the layers of an image, one after the other, the lowest first.
pub struct Scan<'a> {
    /// What they are together.
    pub tree: Tree,
    // Bytes that they hold, and that names took.
    read: u64,
    names: usize,
    // Nobody waits for it any more.
    is_over: &'a AtomicBool,
}

impl<'a> Scan<'a> {
    /// Of no layer yet. It ends early once that is set.
    pub fn new(is_over: &'a AtomicBool) -> Self {
        Scan { tree: Tree::default(), read: 0, names: 0, is_over }
    }

    /// Puts a layer upon it: a tar archive, by gzip or not.
    pub fn layer(&mut self, layer: impl Read) -> io::Result<()> {
        let mut layer = io::BufReader::with_capacity(256 << 10, layer);
        let mut first = [0; 4];
        let length = peek(&mut layer, &mut first)?;
        match &first[..length] {
            [0x1f, 0x8b, ..] => self.tar(MultiGzDecoder::new(layer)),
            [0x28, 0xb5, 0x2f, 0xfd] => Err(io::Error::other("is compressed by zstd, which cannot be looked into")),
            _ => self.tar(layer),
        }
    }

    fn tar(&mut self, tar: impl Read) -> io::Result<()> {
        let mut own = Tree::default();
        let mut heads = Heads::new(tar);
        while let Some(head) = heads.next()? {
            if self.is_over.load(Ordering::Relaxed) {
                return Err(io::Error::other("is not looked into any more: nobody waits for it"));
            }
            self.read = self.read.saturating_add(head.size).saturating_add(512);
            if self.read >= LARGEST {
                return Err(io::Error::other(format!("the layers hold more than {} GiB", LARGEST >> 30)));
            }
            let path = clean(&String::from_utf8_lossy(&head.path));
            let (folder, name) = above(&path);
            if name == OPAQUE {
                self.tree.clear(folder);
                continue;
            }
            if let Some(gone) = name.strip_prefix(WHITEOUT) {
                if !gone.is_empty() {
                    self.tree.remove(&joined(folder, gone));
                }
                continue;
            }
            let is_folder = head.kind.is_dir();
            // The root is always there, and never goes.
            if path.is_empty() && !is_folder {
                continue;
            }
            // One that was there keeps what is in it.
            if !is_folder || (!path.is_empty() && !matches!(self.tree.0.get(&path), Some(Entry::Folder(_)))) {
                self.tree.remove(&path);
            }
            if !is_folder {
                own.remove(&path);
            }
            let ((uid, gid), mode) = (head.owner, head.mode);
            let entry = match head.kind {
                tar::EntryType::Directory => Some(Entry::Folder(Folder { mode, uid, gid })),
                tar::EntryType::Symlink => Some(Entry::Link(String::from_utf8_lossy(&head.link).into_owned())),
                _ => None,
            };
            self.imply(&mut own, &path)?;
            if let Some(entry) = entry {
                self.tell(&mut own, path, entry)?;
            }
        }
        // Whiteouts are for what is below the layer, wherever in it they stand.
        self.tree.0.append(&mut own.0);
        Ok(())
    }

    fn tell(&mut self, own: &mut Tree, path: String, entry: Entry) -> io::Result<()> {
        self.names += path.len() + if let Entry::Link(to) = &entry { to.len() } else { 0 };
        own.0.insert(path, entry);
        if self.tree.0.len() + own.0.len() > MOST || self.names > NAMES {
            let why = format!("the image has more than {MOST} folders and links, or {} MiB of names", NAMES >> 20);
            return Err(io::Error::other(why));
        }
        Ok(())
    }

    // A folder that nobody tells of is there by what is in it.
    fn imply(&mut self, own: &mut Tree, path: &str) -> io::Result<()> {
        let mut folder = above(path).0;
        while !folder.is_empty() && !own.0.contains_key(folder) && !self.tree.0.contains_key(folder) {
            self.tell(own, folder.to_owned(), Entry::Folder(PLAIN))?;
            folder = above(folder).0;
        }
        Ok(())
    }
}

impl Tree {
    // With all that is in it.
    fn remove(&mut self, path: &str) {
        self.0.remove(path);
        self.clear(path);
    }

    fn clear(&mut self, folder: &str) {
        let within = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let range = self.0.range(within.clone()..).take_while(|(path, _)| path.starts_with(&within));
        let gone: Vec<String> = range.map(|(path, _)| path.clone()).collect();
        gone.iter().for_each(|path| _ = self.0.remove(path));
    }

    /// Where a path leads, through all links. What is not there is made as it is called.
    pub fn place(&self, path: &str) -> io::Result<String> {
        let mut open: Vec<String> = clean(path).split('/').rev().map(str::to_owned).collect();
        let (mut so_far, mut links) = (String::new(), 0);
        while let Some(part) = open.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    so_far.truncate(above(&so_far).0.len());
                    continue;
                }
                _ => {}
            }
            let next = joined(&so_far, &part);
            match self.0.get(&next) {
                Some(Entry::Link(to)) => {
                    links += 1;
                    if links > LINKS {
                        return Err(io::Error::other(format!("{path:.200?} leads through more than {LINKS} links")));
                    }
                    if to.starts_with('/') {
                        so_far.clear();
                    }
                    open.extend(to.split('/').rev().map(str::to_owned));
                }
                _ => so_far = next,
            }
        }
        Ok(so_far)
    }

    /// A folder, if it is one that is known.
    pub fn folder(&self, path: &str) -> Option<Folder> {
        match self.0.get(path) {
            Some(Entry::Folder(folder)) => Some(*folder),
            _ => None,
        }
    }

    /// Something comes to a path: a folder or link, or else a file.
    pub fn put(&mut self, path: &str, entry: Option<Entry>) {
        let is_folder = matches!(entry, Some(Entry::Folder(_)));
        if !is_folder || self.folder(path).is_none() {
            self.remove(path);
        }
        if let Some(entry) = entry {
            self.0.insert(path.to_owned(), entry);
        }
    }

    /// How many folders and links it has.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

// What it begins with, which stays there.
fn peek(reader: &mut impl io::BufRead, first: &mut [u8; 4]) -> io::Result<usize> {
    let there = reader.fill_buf()?;
    let length = there.len().min(first.len());
    first[..length].copy_from_slice(&there[..length]);
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Put<'a> {
        Folder(&'a str, u32),
        Link(&'a str, &'a str),
        File(&'a str),
    }
    use Put::{File, Folder as Dir, Link};

    fn layer(all: &[Put]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for put in all {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_uid(7);
            header.set_gid(8);
            header.set_mode(0o644);
            match put {
                Dir(path, mode) => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(*mode);
                    tar.append_data(&mut header, path, io::empty()).unwrap();
                }
                Link(path, to) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    tar.append_link(&mut header, path, to).unwrap();
                }
                File(path) => tar.append_data(&mut header, path, io::empty()).unwrap(),
            }
        }
        tar.into_inner().unwrap()
    }

    fn tree(layers: &[&[Put]]) -> Tree {
        let going = AtomicBool::new(false);
        let mut scan = Scan::new(&going);
        layers.iter().for_each(|one| scan.layer(&*layer(one)).unwrap());
        scan.tree
    }

    #[test]
    fn paths_lead_where_they_do_in_a_container() {
        let base: &[Put] = &[
            Dir("usr/", 0o755),
            Dir("./usr/bin/", 0o755),
            Link("bin", "usr/bin"),
            Dir("tmp", 0o1777),
            Link("a", "b"),
            Link("b", "/a"),
            Dir("home/me", 0o700),
            Link("usr/up", "../home/me"),
        ];
        let tree_of = tree(&[base]);
        let place = |path: &str| tree_of.place(path).unwrap();
        assert_eq!(place("/bin/app"), "usr/bin/app");
        assert_eq!(place("usr/up/x/y"), "home/me/x/y");
        assert_eq!(place("/../new//./x/"), "new/x");
        assert_eq!(place("/"), "");
        assert_eq!(tree_of.folder("tmp"), Some(Folder { mode: 0o1777, uid: 7, gid: 8 }));
        assert_eq!((tree_of.folder("bin"), tree_of.folder("new"), tree_of.folder("home")), (None, None, Some(PLAIN)));
        assert!(tree_of.place("a/x").unwrap_err().to_string().contains("links"));
    }

    #[test]
    fn layers_take_away_what_is_below_them() {
        let base: &[Put] =
            &[Dir("x", 0o700), Dir("x/deep", 0o711), Dir("y", 0o701), Dir("y/in", 0o711), Link("l", "x")];
        let gone = |upper: &[Put]| tree(&[base, upper]);
        let has = |tree: &Tree, path: &str| tree.0.contains_key(path);
        let one = gone(&[File(".wh.x"), File("y/.wh..wh..opq"), Dir("y/new", 0o755)]);
        assert!(!has(&one, "x") && !has(&one, "x/deep") && has(&one, "y") && !has(&one, "y/in") && has(&one, "y/new"));
        // Wherever the mark stands, it is not for its own layer.
        let two = gone(&[Dir("y/new", 0o755), File("y/.wh..wh..opq"), Dir("x", 0o750)]);
        assert!(has(&two, "y/new") && !has(&two, "y/in") && has(&two, "x/deep"));
        assert_eq!(two.folder("x").unwrap().mode, 0o750);
        // A file, a link or a folder in place of another.
        let three = gone(&[File("x"), Dir("l", 0o755), Link("y", "x")]);
        assert!(!has(&three, "x") && !has(&three, "x/deep") && !has(&three, "y/in"));
        assert_eq!(three.place("l/a").unwrap(), "l/a");
        assert_eq!(three.place("y/a").unwrap(), "x/a");
        // The root is never in place of anything, and nothing is in its place.
        let root = layer(&[Dir("r", 0o755)]);
        let four = gone(&[Dir("./", 0o700), File(".wh."), Link("z", "y")]);
        assert!(has(&four, "x/deep") && has(&four, "l") && has(&four, "z"));
        assert_eq!(four.place("l/a").unwrap(), "x/a");
        // By gzip as well, and nothing else; and not for ever.
        let over = AtomicBool::new(false);
        let mut scan = Scan::new(&over);
        let packed = {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut gz, &layer(base)).unwrap();
            gz.finish().unwrap()
        };
        scan.layer(&*packed).unwrap();
        assert_eq!(scan.tree.count(), 5);
        let mut fails = |bytes: &[u8]| scan.layer(bytes).unwrap_err().to_string();
        assert!(fails(&[0x28, 0xb5, 0x2f, 0xfd, 0]).contains("zstd"));
        assert!(!fails(b"no archive at all").is_empty());
        over.store(true, Ordering::Relaxed);
        assert!(fails(&root).contains("nobody waits"));
    }

    #[test]
    fn what_is_put_upon_it_is_there() {
        let mut tree = Tree::default();
        let folder = |mode| Some(Entry::Folder(Folder { mode, uid: 0, gid: 0 }));
        tree.put("a", folder(0o755));
        tree.put("a/b", folder(0o700));
        tree.put("a", folder(0o711));
        assert_eq!((tree.folder("a").unwrap().mode, tree.folder("a/b").unwrap().mode), (0o711, 0o700));
        tree.put("l", Some(Entry::Link("a/b".into())));
        assert_eq!(tree.place("l/x").unwrap(), "a/b/x");
        tree.put("a", None);
        assert_eq!((tree.folder("a"), tree.folder("a/b"), tree.count()), (None, None, 1));
    }
}
