//! The folders and links of an image, so that what is put upon it lands where it would in a container: a path may lead through a link
//! (`/bin` is `usr/bin`), and a folder that is there keeps its mode and owner.

use std::collections::BTreeMap;
use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most folders and links of an image.
const MOST: usize = 500_000;
/// What the layers of an image hold altogether, at most, in bytes.
const LARGEST: u64 = 32 << 30;
/// Links that one path may lead through.
const LINKS: usize = 40;
/// What takes something away that a layer below has.
const WHITEOUT: &str = ".wh.";
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

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Folder(Folder),
    Link(String),
}

/// Where a path leads in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Place {
    /// The path without links.
    pub path: String,
    /// Each folder on the way that is there, the path itself as well, from the top.
    pub folders: Vec<(String, Folder)>,
}

/// Folders and links by their paths, without a slash in front.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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

fn joined(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn above(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Tree {
    /// Puts a layer upon it: a tar archive, by gzip or not. `read` counts what all layers hold.
    pub fn add(&mut self, layer: impl Read, read: &mut u64) -> io::Result<()> {
        let mut layer = io::BufReader::new(layer);
        let mut first = [0; 4];
        let length = peek(&mut layer, &mut first)?;
        let left = LARGEST.saturating_sub(*read);
        match &first[..length] {
            [0x1f, 0x8b, ..] => self.add_tar(MultiGzDecoder::new(layer).take(left), read),
            [0x28, 0xb5, 0x2f, 0xfd] => Err(io::Error::other("is compressed by zstd, which cannot be looked into")),
            _ => self.add_tar(layer.take(left), read),
        }
    }

    fn add_tar(&mut self, tar: impl Read, read: &mut u64) -> io::Result<()> {
        let mut own: Tree = Tree::default();
        let mut archive = tar::Archive::new(tar);
        for entry in archive.entries()? {
            let entry = entry?;
            let header = entry.header();
            *read += entry.size() + 512;
            if *read >= LARGEST {
                return Err(io::Error::other(format!("the layers hold more than {} GiB", LARGEST >> 30)));
            }
            let path = clean(&String::from_utf8_lossy(&entry.path_bytes()));
            let (folder, name) = above(&path);
            if name == OPAQUE {
                self.clear(folder);
                continue;
            }
            if let Some(gone) = name.strip_prefix(WHITEOUT) {
                self.remove(&joined(folder, gone));
                continue;
            }
            match header.entry_type() {
                tar::EntryType::Directory => {
                    let folder = Folder { mode: header.mode()?, uid: header.uid()?, gid: header.gid()? };
                    // One that was there keeps what is in it.
                    if !matches!(self.0.get(&path), Some(Entry::Folder(_))) {
                        self.remove(&path);
                    }
                    own.0.insert(path, Entry::Folder(folder));
                }
                tar::EntryType::Symlink => {
                    self.remove(&path);
                    own.remove(&path);
                    let to = entry.link_name_bytes().map(|to| String::from_utf8_lossy(&to).into_owned());
                    own.0.insert(path, Entry::Link(to.unwrap_or_default()));
                }
                tar::EntryType::XGlobalHeader => {}
                _ => {
                    self.remove(&path);
                    own.remove(&path);
                }
            }
            if self.0.len() + own.0.len() > MOST {
                return Err(io::Error::other(format!("the image has more than {MOST} folders and links")));
            }
        }
        // Whiteouts are for what is below the layer, wherever in it they stand.
        self.0.append(&mut own.0);
        Ok(())
    }

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

    /// Where a path leads. What is not there is made as it is called.
    pub fn place(&self, path: &str) -> io::Result<Place> {
        let mut open: Vec<String> = clean(path).split('/').rev().map(str::to_owned).collect();
        let (mut so_far, mut folders, mut links) = (String::new(), Vec::new(), 0);
        while let Some(part) = open.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    so_far = above(&so_far).0.to_owned();
                    continue;
                }
                _ => {}
            }
            let next = joined(&so_far, &part);
            match self.0.get(&next) {
                Some(Entry::Link(to)) => {
                    links += 1;
                    if links > LINKS {
                        return Err(io::Error::other(format!("{path:?} leads through more than {LINKS} links")));
                    }
                    if to.starts_with('/') {
                        so_far.clear();
                    }
                    open.extend(to.split('/').rev().map(str::to_owned));
                }
                Some(Entry::Folder(folder)) => {
                    folders.push((next.clone(), *folder));
                    so_far = next;
                }
                None => so_far = next,
            }
        }
        // Of those that it went through only the ones that it is in.
        folders.retain(|(folder, _)| so_far == *folder || so_far.starts_with(&format!("{folder}/")));
        folders.sort_by_key(|(folder, _)| folder.len());
        folders.dedup_by(|(a, _), (b, _)| a == b);
        Ok(Place { path: so_far, folders })
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
        let (mut tree, mut read) = (Tree::default(), 0);
        layers.iter().for_each(|one| tree.add(&*layer(one), &mut read).unwrap());
        tree
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
        let names = |path: &str| place(path).folders.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(place("/bin/app").path, "usr/bin/app");
        assert_eq!(names("/bin/app"), ["usr", "usr/bin"]);
        assert_eq!(place("usr/up/x/y").path, "home/me/x/y");
        assert_eq!(names("usr/up/x/y"), ["home/me"]);
        assert_eq!(place("/tmp/").folders, [("tmp".to_owned(), Folder { mode: 0o1777, uid: 7, gid: 8 })]);
        assert_eq!(place("/../new//./x/").path, "new/x");
        assert_eq!(place("/").path, "");
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
        assert_eq!(two.place("x").unwrap().folders[0].1.mode, 0o750);
        // A file, a link or a folder in place of another.
        let three = gone(&[File("x"), Dir("l", 0o755), Link("y", "x")]);
        assert!(!has(&three, "x") && !has(&three, "x/deep") && !has(&three, "y/in"));
        assert_eq!(three.place("l/a").unwrap().path, "l/a");
        assert_eq!(three.place("y/a").unwrap().path, "x/a");
        // By gzip as well, and nothing else.
        let (mut tree, mut read) = (Tree::default(), 0);
        let packed = {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut gz, &layer(base)).unwrap();
            gz.finish().unwrap()
        };
        tree.add(&*packed, &mut read).unwrap();
        assert_eq!(tree.count(), 5);
        assert!(tree.add(&[0x28, 0xb5, 0x2f, 0xfd, 0][..], &mut read).unwrap_err().to_string().contains("zstd"));
        assert!(tree.add(&b"no archive at all"[..], &mut read).is_err());
    }
}
