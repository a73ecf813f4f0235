//! Layers upon images and upon one another.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};

use tar::EntryType::{self, Directory, Link, Regular, Symlink};

use super::layer::{Content, Layer, Source};
use super::tree::{Scan, Tree};

// An archive of names, kinds and where they lead or what is in them.
fn archive(all: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, text) in all {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if *kind == Directory { 0o1777 } else { 0o640 });
        header.set_uid(5);
        header.set_gid(6);
        header.set_mtime(77);
        header.set_size(0);
        match kind {
            Symlink | Link => tar.append_link(&mut header, name, text).unwrap(),
            _ => {
                header.set_size(text.len() as u64);
                tar.append_data(&mut header, name, text.as_bytes()).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}

fn tree(layers: &[Vec<u8>]) -> Tree {
    let going = AtomicBool::new(false);
    let mut scan = Scan::new(&going);
    layers.iter().for_each(|layer| scan.layer(&**layer).unwrap());
    scan.tree
}

fn source(to: &str, content: Content) -> Source {
    Source { to: to.into(), content, mode: None, owner: (0, 0), exclude: Vec::new() }
}

fn text(to: &str) -> Source {
    source(to, Content::Bytes(b"text".to_vec()))
}

// A layer as it was made: names with what is there, in their order.
fn made(sources: Vec<Source>, tree: &mut Tree) -> crate::model::Result<Vec<(String, String)>> {
    let mut out = Vec::new();
    Layer::gather(sources)?.write(tree, 0, &mut out, &AtomicU64::new(0))?;
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&*out).read_to_end(&mut plain).unwrap();
    let mut archive = tar::Archive::new(&*plain);
    let all = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().to_vec()).unwrap();
        let link = entry.link_name().unwrap().map(|to| format!("-> {}", to.display()));
        let header = entry.header();
        let about = format!("{:o} {}:{}", header.mode().unwrap(), header.uid().unwrap(), header.gid().unwrap());
        let mut inside = String::new();
        entry.read_to_string(&mut inside).unwrap();
        (name, format!("{about} {}", link.unwrap_or(inside)).trim().to_owned())
    });
    Ok(all.collect())
}

fn names(made: &[(String, String)]) -> Vec<&str> {
    made.iter().map(|(name, _)| name.as_str()).collect()
}

fn folder(all: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in all {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match text.strip_prefix("-> ") {
            Some(to) => std::os::unix::fs::symlink(to, path).unwrap(),
            None => std::fs::write(path, text).unwrap(),
        }
    }
    folder
}

fn root() -> Vec<(&'static str, EntryType, &'static str)> {
    vec![
        ("usr/bin/", Directory, ""),
        ("bin", Symlink, "usr/bin"),
        ("usr/bin/sh", Regular, "sh"),
        ("tmp/", Directory, ""),
        ("cur", Symlink, "usr"),
    ]
}

fn tar_at(path: &Path, bytes: &[u8]) -> Content {
    std::fs::write(path, bytes).unwrap();
    Content::Tar(path.to_owned())
}

#[test]
fn a_layer_knows_what_is_below_it() {
    let folder = tempfile::tempdir().unwrap();
    let rootfs = tar_at(&folder.path().join("root.tar"), &archive(&root()));
    // From nothing: what one layer brings, the next one finds.
    let mut tree_of = Tree::default();
    let first = made(vec![source("/", rootfs.clone())], &mut tree_of).unwrap();
    assert_eq!(names(&first), ["usr/", "usr/bin/", "bin", "usr/bin/sh", "tmp/", "cur"]);
    let second = made(vec![text("/bin/app"), text("/tmp/note")], &mut tree_of).unwrap();
    assert_eq!(names(&second), ["usr/", "usr/bin/", "usr/bin/app", "tmp/", "tmp/note"]);
    assert_eq!(second[3].1, "1777 5:6");
    let owned = Source { owner: (1000, 1000), ..source("/app", Content::Disk(folder.path().to_owned())) };
    made(vec![owned], &mut tree_of).unwrap();
    let third = made(vec![text("/app/conf")], &mut tree_of).unwrap();
    assert_eq!(third[0], ("app/".to_owned(), "755 1000:1000".to_owned()));
    // What is copied lands where an archive of the same layer leads, and is in place of what that has.
    let mut none = Tree::default();
    let both = made(vec![text("/bin/app"), source("/", rootfs), text("/bin/sh")], &mut none).unwrap();
    let all: BTreeMap<String, String> = both.iter().cloned().collect();
    assert_eq!(all.keys().collect::<Vec<_>>(), ["bin", "cur", "tmp/", "usr/", "usr/bin/", "usr/bin/app", "usr/bin/sh"]);
    assert_eq!(all["usr/bin/sh"], "644 0:0 text");
    // The same as from a base.
    assert_eq!(tree(&[archive(&root())]).place("bin/x").unwrap(), "usr/bin/x");
}

#[test]
fn archives_are_unpacked_as_tar_does() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut all = root();
    all.extend([("bin/via", Regular, "via"), ("bin/hard", Link, "bin/via"), ("./", Directory, "")]);
    let content = tar_at(&at("a.tar"), &archive(&all));
    let mut none = Tree::default();
    let done = made(vec![source("/", content.clone())], &mut none).unwrap();
    let rest = done[names(&done).iter().position(|name| *name == "cur").unwrap() + 1..].to_vec();
    let expected = [("usr/bin/via", "640 5:6 via"), ("usr/bin/hard", "640 5:6 -> usr/bin/via")];
    assert_eq!(rest, expected.map(|(name, about)| (name.to_owned(), about.to_owned())));
    // Below a folder, hard links as well.
    let mut none = Tree::default();
    let done = made(vec![source("/opt/x/", content)], &mut none).unwrap();
    let of = |name: &str| done.iter().find(|(known, _)| known == name).map(|(_, about)| about.clone()).unwrap();
    assert_eq!(
        (of("opt/x/usr/bin/hard"), of("opt/x/bin")),
        ("640 5:6 -> opt/x/usr/bin/via".into(), "777 0:0 -> usr/bin".replace("777 0:0", "640 5:6"))
    );
    // Long names, and attributes of files and folders.
    let long = format!("{}/end", "long".repeat(60));
    let mut tar = tar::Builder::new(Vec::new());
    let record = b"37 SCHILY.xattr.security.capability=\x01\n".as_slice();
    let record = format!("{} {}", record.len(), String::from_utf8_lossy(&record[3..]));
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(EntryType::XHeader);
    header.set_path("x").unwrap();
    header.set_size(record.len() as u64);
    header.set_cksum();
    tar.append(&header, record.as_bytes()).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(0);
    tar.append_data(&mut header, &long, io::empty()).unwrap();
    let content = tar_at(&at("b.tar"), &tar.into_inner().unwrap());
    let mut out = Vec::new();
    Layer::gather(vec![source("/", content)])
        .unwrap()
        .write(&mut Tree::default(), 0, &mut out, &AtomicU64::new(0))
        .unwrap();
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&*out).read_to_end(&mut plain).unwrap();
    let mut archive = tar::Archive::new(&*plain);
    let mut last = archive.entries().unwrap().last().unwrap().unwrap();
    assert_eq!(last.path().unwrap().display().to_string(), long);
    let kept = last.pax_extensions().unwrap().unwrap().next().unwrap().unwrap();
    assert_eq!((kept.key().unwrap(), kept.value_bytes()), ("SCHILY.xattr.security.capability", &b"\x01"[..]));
}

#[test]
fn what_no_layer_can_be_is_said() {
    let folder_of = folder(&[("a/.wh.b", ""), ("cut/x", "x")]);
    let at = |name: &str| folder_of.path().join(name);
    let fails = |sources: Vec<Source>| made(sources, &mut tree(&[archive(&root())])).unwrap_err().to_string();
    assert!(fails(vec![source("/", Content::Disk(at("a")))]).contains(".wh."));
    assert!(fails(vec![text("/x"), text("/x/y")]).contains("a file or link of the same layer"));
    assert!(fails(vec![text("/usr")]).contains("is a folder of the image"));
    assert!(fails(vec![text("/bin")]).contains("is a folder of the image"));
    let gzip = {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gz, &archive(&root())).unwrap();
        gz.finish().unwrap()
    };
    let cut = tar_at(&at("cut.tgz"), &gzip[..gzip.len() - 6]);
    assert!(fails(vec![source("/", cut)]).contains("cut.tgz"));
    let name = b"\xff\xfe";
    let mut bad = archive(&[("xx", Regular, "")]);
    bad[..2].copy_from_slice(name);
    let mut header = tar::Header::from_byte_slice(&bad[..512]).clone();
    header.set_cksum();
    bad[..512].copy_from_slice(header.as_bytes());
    assert!(fails(vec![source("/", tar_at(&at("name.tar"), &bad))]).contains("not UTF-8"));
    let mut tar = tar::Builder::new(Vec::new());
    let record = b"22 GNU.sparse.major=1\n";
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(EntryType::XHeader);
    header.set_path("x").unwrap();
    header.set_size(record.len() as u64);
    header.set_cksum();
    tar.append(&header, &record[..]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(0);
    tar.append_data(&mut header, "holes", io::empty()).unwrap();
    let sparse = tar_at(&at("sparse.tar"), &tar.into_inner().unwrap());
    assert!(fails(vec![source("/", sparse)]).contains("--sparse"));
    let layer = tar_at(&at("layer.tar"), &archive(&[("etc/.wh.x", Regular, "")]));
    assert!(fails(vec![source("/", layer)]).contains("takes away"));
}

#[test]
fn a_link_of_a_folder_is_in_place_of_one_that_is_there() {
    let folder = folder(&[("cur", "-> usr"), ("bin/x", "x"), ("skip/me", "x"), ("keep.md", "x")]);
    let mut tree_of = tree(&[archive(&root())]);
    let mut all = source("/", Content::Disk(folder.path().to_owned()));
    all.exclude = vec![glob::Pattern::new("skip").unwrap(), glob::Pattern::new("*.md").unwrap()];
    let done = made(vec![all], &mut tree_of).unwrap();
    assert_eq!(names(&done), ["usr/", "usr/bin/", "usr/bin/x", "cur"]);
    assert_eq!(done[3].1, "777 0:0 -> usr");
}
