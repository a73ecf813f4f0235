//! Embeds `stdlib/` and the types of the Lua API whole: every file that is there, so that no list has to be kept by hand.

use std::fmt::Write;
use std::path::Path;

fn main() {
    embed("stdlib", ".lua", "stdlib.rs");
    embed("src/script/api", ".d.luau", "types.rs");
}

fn embed(folder: &str, suffix: &str, to: &str) {
    println!("cargo:rerun-if-changed={folder}");
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let mut files = Vec::new();
    collect(&Path::new(&root).join(folder), "", suffix, &mut files);
    files.sort();
    let mut source = String::from("pub(super) const FILES: &[(&str, &str)] = &[\n");
    for name in files {
        // Found when it is compiled, so that a copy of the folder builds from itself.
        let path = format!("/{folder}/{name}");
        writeln!(source, "    ({name:?}, include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {path:?}))),")
            .expect("writing to a string");
    }
    source.push_str("];\n");
    let out = Path::new(&std::env::var("OUT_DIR").expect("cargo sets it")).join(to);
    std::fs::write(out, source).expect("the output folder is writable");
}

fn collect(folder: &Path, prefix: &str, suffix: &str, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let entry = entry.expect("the folder is readable");
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            collect(&entry.path(), &format!("{name}/"), suffix, files);
        } else if name.ends_with(suffix) {
            files.push(name);
        }
    }
}
