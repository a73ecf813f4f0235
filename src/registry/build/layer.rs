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
use super::tree::{Folder, Place, clean};
use crate::model::{Error, Result};
use crate::registry::digest::Digest;

/// Most files of a layer.
const MOST: usize = 1_000_000;
/// How deep folders may be.
const DEEP: usize = 128;
/// Folders that nobody has told of.
pub(super) const PLAIN: Folder = Folder { mode: 0o755, uid: 0, gid: 0 };

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
    folders: BTreeSet<String>,
    size: u64,
}

/// Where folders of a layer are in the image below it, by how they are called.
pub type Places = BTreeMap<String, Place>;

pub(super) fn failed(path: &Path, doing: &str) -> impl Fn(io::Error) -> Error + use<> {
    let (path, doing) = (path.display().to_string(), doing.to_owned());
    move |error| Error::io(format!("file {path}"), &doing, &error)
}

pub(super) fn above(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

pub(super) fn joined(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn name_of(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned)
        .ok_or_else(|| Error::invalid(format!("file {}", path.display()), "has a name that is not UTF-8"))
}

pub(super) fn opened_tar(path: &Path) -> Result<tar::Archive<Box<dyn Read>>> {
    let failed = failed(path, "read it");
    let mut file = io::BufReader::with_capacity(1 << 20, File::open(path).map_err(&failed)?);
    let is_packed = io::BufRead::fill_buf(&mut file).map_err(&failed)?.starts_with(&[0x1f, 0x8b]);
    let reader: Box<dyn Read> = if is_packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    Ok(tar::Archive::new(reader))
}

impl Layer {
    /// Looks at all that is to be in it; nothing is read yet but archives.
    pub fn gather(sources: Vec<Source>) -> Result<Self> {
        let mut layer = Layer { items: Vec::new(), tars: Vec::new(), folders: BTreeSet::new(), size: 0 };
        for source in sources {
            layer.add(source)?;
        }
        let folders: Vec<&str> = layer.items.iter().map(|item| above(&item.path).0).collect();
        layer.folders.extend(folders.into_iter().map(str::to_owned));
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
            return self.put(Item { path, what: What::Bytes(bytes), mode: mode.unwrap_or(0o644), owner });
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
        self.file(disk, path, &about, mode, owner)
    }

    fn file(
        &mut self,
        disk: PathBuf,
        path: String,
        about: &Metadata,
        mode: Option<u32>,
        owner: (u64, u64),
    ) -> Result<()> {
        if !about.is_file() {
            let why = "is neither a file nor a folder nor a link: no image has it";
            return Err(Error::invalid(format!("file {}", disk.display()), why));
        }
        let plain = if about.permissions().mode() & 0o111 != 0 { 0o755 } else { 0o644 };
        self.size += about.len();
        self.put(Item { path, what: What::File(disk, about.len()), mode: mode.unwrap_or(plain), owner })
    }

    fn put(&mut self, item: Item) -> Result<()> {
        if self.items.len() >= MOST {
            return Err(Error::invalid(format!("copy to {}", item.path), format!("is more than {MOST} files")));
        }
        if matches!(item.what, What::Folder) {
            self.folders.insert(item.path.clone());
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
        self.put(Item { path: path.to_owned(), what: What::Folder, mode: 0o755, owner: source.owner })?;
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
                self.put(Item { path: inner, what: What::Link(to), mode: 0o777, owner: source.owner })?;
            } else {
                self.file(disk, inner, &about, source.mode, source.owner)?;
            }
        }
        Ok(())
    }

    fn add_tar(&mut self, file: PathBuf, to: String) -> Result<()> {
        let failed = failed(&file, "read it as a tar archive");
        let mut archive = opened_tar(&file)?;
        self.folders.insert(to.clone());
        for entry in archive.entries().map_err(&failed)? {
            let entry = entry.map_err(&failed)?;
            let path = inner(&entry, &to);
            self.folders.insert(above(&path).0.to_owned());
            if self.folders.len() > MOST {
                return Err(Error::invalid(
                    format!("file {}", file.display()),
                    format!("has more than {MOST} folders"),
                ));
            }
            if entry.header().entry_type().is_dir() {
                self.folders.insert(path);
            }
            self.size += entry.size();
        }
        self.tars.push(TarSource { file, to });
        Ok(())
    }

    /// What has to be known of the image below it: where these lead.
    pub fn asks(&self) -> BTreeSet<String> {
        let paths = self.items.iter().map(|item| item.path.clone());
        paths.chain(self.folders.iter().cloned()).collect()
    }

    /// Makes it. All times in it are `time`, in seconds since 1970; `done` counts the bytes that went into it.
    pub fn write(&self, places: &Places, time: u64, out: impl Write, done: &AtomicU64) -> Result<Made> {
        let broken = |error: io::Error| Error::io("layer", "write it", &error);
        let packed = Hashing::new(out);
        let gz = flate2::GzBuilder::new().mtime(0).operating_system(255).write(packed, flate2::Compression::new(6));
        let mut writer =
            Writer { tar: tar::Builder::new(Hashing::new(gz)), places, time, done, written: BTreeSet::new() };
        for (path, item) in &self.placed(places)? {
            writer.item(path, item)?;
        }
        for source in &self.tars {
            writer.tar(source)?;
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

    // By where they are; what comes later is in place of what came before.
    fn placed<'a>(&'a self, places: &Places) -> Result<BTreeMap<String, &'a Item>> {
        let mut placed: BTreeMap<String, &Item> = BTreeMap::new();
        for item in &self.items {
            let path = match item.what {
                What::Folder => found(places, &item.path).path,
                _ => {
                    let at = found(places, &item.path);
                    if at.folders.last().is_some_and(|(folder, _)| *folder == at.path) {
                        let why =
                            "is a folder of the image that it is built from: end it with / to put something into it";
                        return Err(Error::invalid(format!("copy to /{}", item.path), why));
                    }
                    let (folder, name) = above(&item.path);
                    joined(&found(places, folder).path, name)
                }
            };
            if let Some(before) = placed.get(&path)
                && matches!(before.what, What::Folder) != matches!(item.what, What::Folder)
            {
                return Err(Error::invalid(format!("copy to /{path}"), "is once a folder, and once a file or link"));
            }
            placed.insert(path, item);
        }
        for (path, item) in &placed {
            let mut folder = above(path).0;
            while !folder.is_empty() {
                if placed.get(folder).is_some_and(|above| !matches!(above.what, What::Folder)) {
                    let why = format!("cannot be in /{folder}, which is a file or link of the same layer");
                    return Err(Error::invalid(format!("copy to /{path}"), why));
                }
                folder = above(folder).0;
            }
            debug_assert!(!path.is_empty() || matches!(item.what, What::Folder));
        }
        Ok(placed)
    }
}

pub(super) fn inner(entry: &tar::Entry<impl Read>, to: &str) -> String {
    let path = clean(&String::from_utf8_lossy(&entry.path_bytes()));
    if path.is_empty() { to.to_owned() } else { joined(to, &path) }
}

pub(super) fn found(places: &Places, path: &str) -> Place {
    places.get(path).cloned().unwrap_or_else(|| Place { path: path.to_owned(), folders: Vec::new() })
}
