//! Bytes of a tar archive on their way to whoever reads it: what stands before an entry, its long name and the like, is read as a whole there, so
//! that it may not be large.

use std::io::{self, Read};

/// Most bytes of what stands before an entry.
const MOST: u64 = 1 << 20;
const BLOCK: usize = 512;

/// Looks at the headers that go by.
pub struct Guard<R> {
    inner: R,
    header: Vec<u8>,
    // What is left of what is between two headers, and what of it is looked at.
    left: u64,
    record: Option<Vec<u8>>,
    // What a record says of the size of the entry behind it.
    size: Option<u64>,
    // Blocks of an old sparse file's map go on, and so much is behind them.
    goes_on: bool,
    behind: u64,
}

impl<R> Guard<R> {
    /// Before this.
    pub fn new(inner: R) -> Self {
        Guard { inner, header: Vec::with_capacity(BLOCK), left: 0, record: None, size: None, goes_on: false, behind: 0 }
    }

    fn look(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let count = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                if let Some(record) = &mut self.record {
                    record.extend_from_slice(&bytes[..count]);
                }
                self.left -= count as u64;
                bytes = &bytes[count..];
                if self.left == 0
                    && let Some(record) = self.record.take()
                {
                    self.size = size_of(&record).or(self.size);
                }
                continue;
            }
            let count = bytes.len().min(BLOCK - self.header.len());
            self.header.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if self.header.len() == BLOCK {
                self.block()?;
                self.header.clear();
            }
        }
        Ok(())
    }

    fn block(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.goes_on) {
            self.goes_on = self.header[504] != 0;
            if !self.goes_on {
                self.left = std::mem::take(&mut self.behind);
            }
            return Ok(());
        }
        // The end, and whatever is behind it.
        if self.header.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let header = tar::Header::from_byte_slice(&self.header);
        let kind = header.entry_type();
        let mut size = header.entry_size()?;
        if kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions()
        {
            if size > MOST {
                let why = format!("has {size} bytes of names and the like before an entry: {MOST} at most");
                return Err(io::Error::other(why));
            }
            if kind.is_pax_local_extensions() {
                self.record = Some(Vec::new());
            }
        } else {
            size = self.size.take().unwrap_or(size);
            self.goes_on = kind.is_gnu_sparse() && self.header[482] != 0;
        }
        self.left = size.div_ceil(BLOCK as u64).saturating_mul(BLOCK as u64);
        if self.left == 0 {
            self.record = None;
        }
        if self.goes_on {
            self.behind = std::mem::take(&mut self.left);
        }
        Ok(())
    }
}

// The size that records of the form `length key=value` tell.
fn size_of(record: &[u8]) -> Option<u64> {
    let mut at = 0;
    while at < record.len() {
        let space = record[at..].iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&record[at..at + space]).ok()?.parse().ok()?;
        let line = record.get(at + space + 1..at.checked_add(length)?)?;
        if let Some(value) = line.strip_prefix(b"size=") {
            return std::str::from_utf8(value).ok()?.trim_end().parse().ok();
        }
        at += length.max(space + 1);
    }
    None
}

impl<R: Read> Read for Guard<R> {
    fn read(&mut self, part: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(part)?;
        self.look(&part[..count])?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(archive: &[u8]) -> io::Result<Vec<(String, u64)>> {
        let mut archive = tar::Archive::new(Guard::new(archive));
        let mut all = Vec::new();
        for entry in archive.entries()? {
            let entry = entry?;
            all.push((entry.path()?.display().to_string(), entry.size()));
        }
        Ok(all)
    }

    #[test]
    fn what_stands_before_an_entry_is_small() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut put = |name: &str, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, data).unwrap();
        };
        let long = "long/".repeat(60);
        put("a", &[1; 700]);
        put(&format!("{long}b"), b"");
        put("c", &[0; 5000]);
        let archive = tar.into_inner().unwrap();
        let all = read(&archive).unwrap();
        assert_eq!(all.iter().map(|(_, size)| *size).collect::<Vec<_>>(), [700, 0, 5000]);
        assert!(all[1].0.starts_with("long/long"));
        // A name of two megabytes is not read.
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(2 << 20);
        header.set_cksum();
        let mut bad = header.as_bytes().to_vec();
        bad.extend_from_slice(&vec![b'n'; 2 << 20]);
        assert!(read(&bad).unwrap_err().to_string().contains("at most"));
    }

    #[test]
    fn a_size_in_a_record_counts() {
        // What the header itself says of it is nothing: as for files of more than 8 GiB.
        let data = [b'L'; 1024];
        let line = b"13 size=1024\n";
        let mut archive = Vec::new();
        let mut put = |kind: tar::EntryType, said: u64, bytes: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_path("f").unwrap();
            header.set_entry_type(kind);
            header.set_size(said);
            header.set_cksum();
            archive.extend_from_slice(header.as_bytes());
            archive.extend_from_slice(bytes);
            archive.resize(archive.len().next_multiple_of(512), 0);
        };
        put(tar::EntryType::XHeader, line.len() as u64, line);
        put(tar::EntryType::Regular, 0, &data);
        put(tar::EntryType::Regular, 3, b"end");
        archive.resize(archive.len() + 1024, 0);
        assert_eq!(read(&archive).unwrap(), [("f".to_owned(), 1024), ("f".to_owned(), 3)]);
        assert_eq!((size_of(line), size_of(b"x"), size_of(b"9 a=bcde\n")), (Some(1024), None, None));
    }
}
