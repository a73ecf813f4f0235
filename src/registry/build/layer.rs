//! A layer of an image from files: a tar archive by gzip that has the same bytes whenever the same files are put into it. Names are in order,
//! times are one, modes are 0755 or 0644, owners are told: nothing of the machine where it is made gets into it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use glob::{MatchOptions, Pattern};

use super::archive::{Hashing, Writer};
use super::heads::{Head, Heads};
use super::tree::{Tree, WHITEOUT, above, clean, joined};
use crate::model::{Error, Result};
use crate::registry::digest::Digest;

/// Most files of a layer.
const MOST: usize = 1_000_000;
/// How deep folders may be.
const DEEP: usize = 128;

/// Something that is put into an image.
#[derive(Debug, Clone)]
pub struct Source {
    /// Where to. A file goes into what ends with a slash, and what is in a folder into the folder of this name.
    pub to: String,
    /// What.
    pub content: Content,
    /// The mode of its files; without it 0755 for what may be executed, 0644 for all else.
    pub mode: Option<u32>,
    /// User and group by number.
    pub owner: (u64, u64),
    /// What of a folder is left out: patterns of paths below it, or of names.
    pub exclude: Vec<Pattern>,
}

/// What is put into an image.
#[derive(Debug, Clone)]
pub enum Content {
    /// A file or a folder.
    Disk(PathBuf),
    /// A file with this in it.
    Bytes(Vec<u8>),
    /// What is in a tar archive, by gzip or not, with the modes, owners and times that it has there.
    Tar(PathBuf),
}

/// What a layer is, once it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Its digest.
    pub digest: Digest,
    /// The digest of what it unpacks to.
    pub diff_id: Digest,
    /// How large it is, in bytes.
    pub size: u64,
}

/// What something in a layer is.
pub(super) enum What {
    Folder,
    File(PathBuf, u64),
    Bytes(Vec<u8>),
    Link(PathBuf),
}

/// Something in a layer.
pub(super) struct Item {
    pub path: String,
    pub what: What,
    pub mode: u32,
    pub owner: (u64, u64),
    // Whoever copies it names it, and not only a folder that it is in.
    pub is_named: bool,
}

/// An archive, and where it is unpacked.
pub(super) struct TarSource {
    pub file: PathBuf,
    pub to: String,
}

/// A layer that is to be made.
pub struct Layer {
    items: Vec<Item>,
    tars: Vec<TarSource>,
    size: u64,
}

pub(super) fn failed(path: &Path, doing: &str) -> impl Fn(io::Error) -> Error + use<> {
    let (path, doing) = (path.display().to_string(), doing.to_owned());
    move |error| Error::io(format!("file {path}"), &doing, &error)
}

fn name_of(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned)
        .ok_or_else(|| Error::invalid(format!("file {}", path.display()), "has a name that is not UTF-8"))
}

pub(super) fn opened_tar(path: &Path) -> Result<Heads<Box<dyn Read>>> {
    let failed = failed(path, "read it");
    let mut file = io::BufReader::with_capacity(1 << 20, File::open(path).map_err(&failed)?);
    let is_packed = io::BufRead::fill_buf(&mut file).map_err(&failed)?.starts_with(&[0x1f, 0x8b]);
    let reader: Box<dyn Read> = if is_packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    Ok(Heads::new(reader))
}

impl Layer {
    /// Looks at all that is to be in it; nothing is read yet but archives.
    pub fn gather(sources: Vec<Source>) -> Result<Self> {
        let mut layer = Layer { items: Vec::new(), tars: Vec::new(), size: 0 };
        for source in sources {
            layer.add(source)?;
        }
        layer.check()?;
        Ok(layer)
    }

    /// Bytes that go into it, before they are packed.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn add(&mut self, source: Source) -> Result<()> {
        let Source { to, content, mode, owner, exclude } = source;
        let path = clean(&to);
        // A text may be told to go into a folder, and has no name there.
        if let Content::Bytes(bytes) = content {
            if path.is_empty() || to.ends_with('/') {
                return Err(Error::invalid(
                    format!("copy to {to:?}"),
                    "is a folder: name the file that the text is to be",
                ));
            }
            self.size += bytes.len() as u64;
            let item = Item { path, what: What::Bytes(bytes), mode: mode.unwrap_or(0o644), owner, is_named: true };
            return self.put(item);
        }
        let disk = match content {
            Content::Tar(file) => return self.add_tar(file, path),
            Content::Disk(disk) => disk,
            Content::Bytes(_) => return Ok(()),
        };
        let about = std::fs::metadata(&disk).map_err(failed(&disk, "find it"))?;
        if about.is_dir() {
            return self.walk(
                &disk,
                &disk,
                &path,
                &Source { to, content: Content::Disk(disk.clone()), mode, owner, exclude },
                0,
            );
        }
        let path = if to.ends_with('/') || path.is_empty() { joined(&path, &name_of(&disk)?) } else { path };
        self.file(disk, path, &about, (mode, owner), true)
    }

    fn file(
        &mut self,
        disk: PathBuf,
        path: String,
        about: &Metadata,
        (mode, owner): (Option<u32>, (u64, u64)),
        is_named: bool,
    ) -> Result<()> {
        if !about.is_file() {
            let why = "is neither a file nor a folder nor a link: no image has it";
            return Err(Error::invalid(format!("file {}", disk.display()), why));
        }
        let plain = if about.permissions().mode() & 0o111 != 0 { 0o755 } else { 0o644 };
        self.size += about.len();
        self.put(Item { path, what: What::File(disk, about.len()), mode: mode.unwrap_or(plain), owner, is_named })
    }

    fn put(&mut self, item: Item) -> Result<()> {
        if self.items.len() >= MOST {
            return Err(Error::invalid(format!("copy to {}", item.path), format!("is more than {MOST} files")));
        }
        if above(&item.path).1.starts_with(WHITEOUT) {
            let why = "would take away what is below it: names that begin with .wh. are no files in a layer";
            return Err(Error::invalid(format!("copy to /{}", item.path), why));
        }
        self.items.push(item);
        Ok(())
    }

    fn walk(&mut self, top: &Path, folder: &Path, path: &str, source: &Source, depth: usize) -> Result<()> {
        if depth > DEEP {
            return Err(Error::invalid(
                format!("folder {}", folder.display()),
                format!("is more than {DEEP} folders deep"),
            ));
        }
        let owner = source.owner;
        self.put(Item { path: path.to_owned(), what: What::Folder, mode: 0o755, owner, is_named: false })?;
        let listing = std::fs::read_dir(folder).map_err(failed(folder, "list it"))?;
        let mut entries: Vec<PathBuf> = listing
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()
            .map_err(failed(folder, "list it"))?;
        entries.sort();
        for disk in entries {
            let below = disk.strip_prefix(top).unwrap_or(&disk);
            let options = MatchOptions { require_literal_separator: true, ..MatchOptions::default() };
            let is_out = |pattern: &Pattern| {
                let of_name = !pattern.as_str().contains('/')
                    && disk.file_name().is_some_and(|name| pattern.matches_path_with(Path::new(name), options));
                of_name || pattern.matches_path_with(below, options)
            };
            if source.exclude.iter().any(is_out) {
                continue;
            }
            let about = std::fs::symlink_metadata(&disk).map_err(failed(&disk, "find it"))?;
            let inner = joined(path, &name_of(&disk)?);
            if about.is_dir() {
                self.walk(top, &disk, &inner, source, depth + 1)?;
            } else if about.is_symlink() {
                let to = std::fs::read_link(&disk).map_err(failed(&disk, "read it"))?;
                self.put(Item { path: inner, what: What::Link(to), mode: 0o777, owner, is_named: false })?;
            } else {
                self.file(disk, inner, &about, (source.mode, owner), false)?;
            }
        }
        Ok(())
    }

    fn add_tar(&mut self, file: PathBuf, to: String) -> Result<()> {
        let failed = failed(&file, "read it as a tar archive");
        let mut heads = opened_tar(&file)?;
        while let Some(head) = heads.next().map_err(&failed)? {
            let wrong = |why: &str| Err(Error::invalid(format!("file {}", file.display()), why));
            let Some(path) = path_of(&head) else { return wrong("has a name that is not UTF-8") };
            if above(&path).1.starts_with(WHITEOUT) {
                return wrong(
                    "takes away what is below it (.wh. in front of a name): it is a layer, not what is in one",
                );
            }
            self.size = self.size.saturating_add(head.size);
        }
        // What is behind its end tells whether it came whole: gzip's own sum.
        heads.rest().map_err(&failed)?;
        self.tars.push(TarSource { file, to });
        Ok(())
    }

    // What is called in two ways that cannot both be.
    fn check(&self) -> Result<()> {
        let mut all: BTreeMap<&str, bool> = BTreeMap::new();
        for item in &self.items {
            let is_folder = matches!(item.what, What::Folder);
            if all.insert(&item.path, is_folder).is_some_and(|before| before != is_folder) {
                let why = "is once a folder, and once a file or link";
                return Err(Error::invalid(format!("copy to /{}", item.path), why));
            }
        }
        for path in all.keys() {
            let mut folder = above(path).0;
            while !folder.is_empty() {
                if all.get(folder) == Some(&false) {
                    let why = format!("cannot be in /{folder}, which is a file or link of the same layer");
                    return Err(Error::invalid(format!("copy to /{path}"), why));
                }
                folder = above(folder).0;
            }
        }
        Ok(())
    }

    /// Makes it upon the image of that `tree`, which is that of both then. All times in it are `time`, in seconds since 1970; `done` counts the
    /// bytes that went into it.
    pub fn write(&self, tree: &mut Tree, time: u64, out: impl Write, done: &AtomicU64) -> Result<Made> {
        let broken = |error: io::Error| Error::io("layer", "write it", &error);
        let packed = Hashing::new(out);
        let gz = flate2::GzBuilder::new().mtime(0).operating_system(255).write(packed, flate2::Compression::new(6));
        let tar = tar::Builder::new(Hashing::new(gz));
        let mut writer = Writer { tar, tree, time, done, written: BTreeSet::new() };
        // What is copied lands where archives of the same layer lead.
        for source in &self.tars {
            writer.tar(source)?;
        }
        // Of one name the last one counts.
        let items: BTreeMap<&str, &Item> = self.items.iter().map(|item| (item.path.as_str(), item)).collect();
        for item in items.into_values() {
            writer.item(item)?;
        }
        let mut plain = writer.tar.into_inner().map_err(broken)?;
        plain.flush().map_err(broken)?;
        let diff_id = plain.hasher.finish();
        let packed: Hashing<_> = GzEncoder::finish(plain.inner).map_err(broken)?;
        let size = packed.size;
        let mut out = packed.inner;
        out.flush().map_err(broken)?;
        Ok(Made { digest: packed.hasher.finish(), diff_id, size })
    }
}

/// The path of an archive's entry; nothing where it, or where it leads, is not UTF-8.
pub(super) fn path_of(head: &Head) -> Option<String> {
    std::str::from_utf8(&head.link).ok()?;
    std::str::from_utf8(&head.path).ok().map(clean)
}

/// Where it goes, in an archive that is unpacked there.
pub(super) fn inner(path: &str, to: &str) -> String {
    if path.is_empty() { to.to_owned() } else { joined(to, path) }
}
