//! What is in a tar archive, one after the other, whoever made it: names, links, sizes and owners from headers and from what stands before them.
//! Nothing of it is read into memory that is large, and nothing that is not understood is passed over.

use std::io::{self, Read};

use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// Longest path, in bytes: no file system takes a longer one.
const LONGEST: usize = 4096;
/// Most bytes of what stands before an entry.
const MOST: u64 = 1 << 20;
/// With what extended attributes begin.
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";

/// Something in an archive.
#[derive(Debug)]
pub struct Head {
    /// Its path, as it is there.
    pub path: Vec<u8>,
    /// Where it leads, if it is a link.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: EntryType,
    /// Bytes in it.
    pub size: u64,
    /// Its mode.
    pub mode: u32,
    /// User and group.
    pub owner: (u64, u64),
    /// When it was changed, in seconds since 1970.
    pub time: u64,
    /// Of a device.
    pub device: (u32, u32),
    /// Extended attributes, by the names that records have.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

// What stood before a header, about it.
#[derive(Default)]
struct Before {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    owner: (Option<u64>, Option<u64>),
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads an archive.
pub struct Heads<R> {
    inner: R,
    // Of the entry that was told last: bytes that were not read, and those that fill its last block.
    left: u64,
    fill: u64,
}

fn wrong(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

impl<R: Read> Heads<R> {
    /// Of these bytes.
    pub fn new(inner: R) -> Self {
        Heads { inner, left: 0, fill: 0 }
    }

    /// The next; nothing at the end.
    pub fn next(&mut self) -> io::Result<Option<Head>> {
        let mut before = Before::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let kind = header.entry_type();
            let size = header.entry_size()?;
            if kind.is_gnu_longname() {
                before.path = Some(self.text(size, LONGEST as u64 + 1)?);
            } else if kind.is_gnu_longlink() {
                before.link = Some(self.text(size, LONGEST as u64 + 1)?);
            } else if kind.is_pax_local_extensions() {
                let records = self.whole(size, MOST)?;
                before.read(&records)?;
            } else if kind.is_pax_global_extensions() {
                // What is said of all of them is a comment, as git writes it.
                self.expect(size);
            } else if is_in_images(kind) {
                return self.head(&header, before).map(Some);
            } else {
                // The name of a volume, the listing of a dump: no image has that.
                self.expect(before.size.unwrap_or(size));
                before = Before::default();
            }
        }
    }

    /// What is in the entry that was told last.
    pub fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    /// Reads on behind the archive's end, to the end of all.
    pub fn rest(mut self) -> io::Result<()> {
        io::copy(&mut self.inner, &mut io::sink()).map(drop)
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        self.fill = size.wrapping_neg() % BLOCK;
    }

    fn skip(&mut self) -> io::Result<()> {
        let all = self.left.saturating_add(self.fill);
        (self.left, self.fill) = (0, 0);
        match io::copy(&mut (&mut self.inner).take(all), &mut io::sink())? {
            count if count == all => Ok(()),
            _ => Err(wrong("the archive is cut off")),
        }
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut block = [0; BLOCK as usize];
        let mut filled = 0;
        while filled < block.len() {
            match self.inner.read(&mut block[filled..])? {
                // Some end without the two empty blocks.
                0 if filled == 0 => return Ok(None),
                0 => return Err(wrong("the archive is cut off")),
                count => filled += count,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        match header.cksum().is_ok_and(|said| said == sum) {
            true => Ok(Some(header)),
            false => Err(wrong("is no tar archive, or is damaged")),
        }
    }

    fn whole(&mut self, size: u64, most: u64) -> io::Result<Vec<u8>> {
        if size > most {
            return Err(wrong(format!("has {size} bytes of names and the like before an entry: {most} at most")));
        }
        self.expect(size);
        let mut bytes = Vec::with_capacity(size as usize);
        self.data().read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    // Up to a zero, where one is.
    fn text(&mut self, size: u64, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = self.whole(size, most)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        bytes.truncate(end);
        Ok(bytes)
    }

    fn head(&mut self, header: &Header, before: Before) -> io::Result<Head> {
        let kind = match header.entry_type() {
            EntryType::GNUSparse => return Err(sparse()),
            EntryType::Continuous => EntryType::Regular,
            kind => kind,
        };
        let path = before.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = before.link.or_else(|| header.link_name_bytes().map(|link| link.into_owned())).unwrap_or_default();
        if path.len() > LONGEST || link.len() > LONGEST {
            return Err(wrong(format!("has a name of more than {LONGEST} bytes")));
        }
        // Links and folders have nothing in them, whatever some say.
        let size = before.size.map_or_else(|| header.entry_size(), Ok)?;
        let size = if kind == EntryType::Regular { size } else { 0 };
        self.expect(size);
        // An empty field is nought.
        let (user, group) = before.owner;
        Ok(Head {
            path,
            link,
            kind,
            size,
            mode: header.mode().unwrap_or_default() & 0o7777,
            owner: (user.or(header.uid().ok()).unwrap_or_default(), group.or(header.gid().ok()).unwrap_or_default()),
            time: header.mtime().unwrap_or_default(),
            device: (
                header.device_major().ok().flatten().unwrap_or_default(),
                header.device_minor().ok().flatten().unwrap_or_default(),
            ),
            attributes: before.attributes,
        })
    }
}

fn is_in_images(kind: EntryType) -> bool {
    use EntryType::{Block, Char, Continuous, Directory, Fifo, GNUSparse, Link, Regular, Symlink};
    matches!(kind, Regular | Continuous | GNUSparse | Link | Symlink | Char | Block | Directory | Fifo)
}

fn sparse() -> io::Error {
    wrong("has files with holes in a form that is not read: make it without --sparse")
}

impl Before {
    // Records of the form `length key=value`, the length with itself and the line's end.
    fn read(&mut self, mut records: &[u8]) -> io::Result<()> {
        let bad = || wrong("has a record before an entry that cannot be read");
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length = std::str::from_utf8(&records[..space]).ok().and_then(|text| text.parse::<usize>().ok());
            let length = length.filter(|length| *length > space + 1 && *length <= records.len()).ok_or_else(bad)?;
            let line = records[space + 1..length].strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = line.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            let (key, value) = (&line[..equals], &line[equals + 1..]);
            let number = || std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok()).ok_or_else(bad);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.owner.0 = Some(number()?),
                b"gid" => self.owner.1 = Some(number()?),
                key if key.starts_with(b"GNU.sparse.") => return Err(sparse()),
                key if key.starts_with(ATTRIBUTE) => self.attributes.push((key.to_vec(), value.to_vec())),
                _ => {}
            }
            records = &records[length..];
        }
        Ok(())
    }
}

/// What is in an entry.
pub struct Data<'a, R>(&'a mut Heads<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, part: &mut [u8]) -> io::Result<usize> {
        let most = part.len().min(usize::try_from(self.0.left).unwrap_or(usize::MAX));
        let count = self.0.inner.read(&mut part[..most])?;
        if count == 0 && most > 0 {
            return Err(wrong("the archive is cut off"));
        }
        self.0.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(archive: &mut Vec<u8>, kind: EntryType, path: &str, said: u64, bytes: &[u8]) {
        let mut header = Header::new_ustar();
        header.set_path(path).unwrap();
        header.set_entry_type(kind);
        header.set_size(said);
        header.set_mode(0o644);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(3);
        header.set_cksum();
        archive.extend_from_slice(header.as_bytes());
        archive.extend_from_slice(bytes);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let length = (rest + 1..rest + 9).find(|length| *length == rest + length.to_string().len()).unwrap();
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    fn all(archive: &[u8]) -> io::Result<Vec<(String, u64, Vec<u8>)>> {
        let mut heads = Heads::new(archive);
        let mut found = Vec::new();
        while let Some(head) = heads.next()? {
            let mut bytes = Vec::new();
            if head.path != b"skipped" {
                heads.data().read_to_end(&mut bytes)?;
            }
            found.push((String::from_utf8_lossy(&head.path).into_owned(), head.owner.0, bytes));
        }
        heads.rest()?;
        Ok(found)
    }

    #[test]
    fn archives_of_every_make_are_read() {
        let mut archive = Vec::new();
        put(&mut archive, EntryType::XGlobalHeader, "pax_global_header", 9, b"9 a=bcde\n");
        put(&mut archive, EntryType::Regular, "skipped", 700, &[1; 700]);
        put(&mut archive, EntryType::GNULongName, "././@LongLink", 301, &[&[b'n'; 300][..], b"\0"].concat());
        put(&mut archive, EntryType::Regular, "short", 3, b"abc");
        // The size of the header is nothing, as for files of more than 8 GiB; and a value has lines.
        let records = [
            record("SCHILY.xattr.a", b"x\ny=\n"),
            record("size", b"1024"),
            record("uid", b"77"),
            record("path", "ä".as_bytes()),
        ]
        .concat();
        put(&mut archive, EntryType::XHeader, "x", records.len() as u64, &records);
        put(&mut archive, EntryType::Regular, "f", 0, &[b'L'; 1024]);
        put(&mut archive, EntryType::new(b'V'), "volume", 600, &[b'v'; 600]);
        put(&mut archive, EntryType::Directory, "d/", 5, b"");
        archive.resize(archive.len() + 1024, 0);
        archive.extend_from_slice(b"whatever stands behind the end");
        let found = all(&archive).unwrap();
        let expected = [
            ("skipped".into(), 1, vec![]),
            ("n".repeat(300), 1, b"abc".to_vec()),
            ("ä".into(), 77, vec![b'L'; 1024]),
            ("d/".into(), 1, vec![]),
        ];
        assert_eq!(found, expected);
        let mut heads = Heads::new(&*archive);
        let attributes = std::iter::from_fn(|| heads.next().unwrap()).nth(2).unwrap().attributes;
        assert_eq!(attributes, [(b"SCHILY.xattr.a".to_vec(), b"x\ny=\n".to_vec())]);
        // Some end where their last entry does.
        let mut short = Vec::new();
        put(&mut short, EntryType::Regular, "a", 2, b"ab");
        assert_eq!(all(&short).unwrap()[0].2, b"ab");
    }

    #[test]
    fn what_is_none_or_too_much_is_refused() {
        let fails = |archive: &[u8]| all(archive).unwrap_err().to_string();
        let mut long = Vec::new();
        put(&mut long, EntryType::GNULongName, "x", 2 << 20, &vec![b'n'; 2 << 20]);
        assert!(fails(&long).contains("at most"));
        let mut deep = Vec::new();
        let records = record("path", "a/".repeat(3000).as_bytes());
        put(&mut deep, EntryType::XHeader, "x", records.len() as u64, &records);
        put(&mut deep, EntryType::Regular, "x", 0, b"");
        assert!(fails(&deep).contains("more than 4096"));
        let mut holes = Vec::new();
        let records = record("GNU.sparse.major", b"1");
        put(&mut holes, EntryType::XHeader, "x", records.len() as u64, &records);
        assert!(fails(&holes).contains("--sparse"));
        for bad in [&b"9 size=1"[..], b"x", b"99 a=b\n", b"6 size\n", b"9 size=x\n"] {
            let mut archive = Vec::new();
            put(&mut archive, EntryType::XHeader, "x", bad.len() as u64, bad);
            assert!(fails(&archive).contains("record"), "{bad:?}");
        }
        assert!(fails(&[b'x'; 600]).contains("no tar archive"));
        assert!(fails(b"short").contains("cut off"));
        let mut cut = Vec::new();
        put(&mut cut, EntryType::Regular, "a", 900, &[0; 900]);
        assert!(fails(&cut[..1100]).contains("cut off"));
    }
}
