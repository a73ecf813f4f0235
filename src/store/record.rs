//! The form of a stored record: format number, checksum, JSON. A newer format is refused, a damaged record named.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::{Error, Kind, Result};

/// The format that this build writes, and the newest it reads.
pub const FORMAT: u32 = 1;

/// `FORMAT CHECKSUM JSON`, with spaces between.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let json = serde_json::to_vec(value).expect("records are made of types that always serialise");
    let mut record = format!("{FORMAT} {:08x} ", checksum(&json)).into_bytes();
    record.extend_from_slice(&json);
    record
}

/// Reads a record; `key` names it in errors.
pub fn decode<T: DeserializeOwned>(key: &str, record: &[u8]) -> Result<T> {
    let json = verify(key, record)?;
    serde_json::from_slice(json).map_err(|error| {
        Error::new(Kind::Corrupt, format!("record \"{key}\""), format!("is damaged: {error}")).help(RESTORE)
    })
}

const RESTORE: &str = "restore the data folder from a backup; neap has changed nothing";

/// The JSON of a record whose format is known and whose checksum fits.
pub fn verify<'a>(key: &str, record: &'a [u8]) -> Result<&'a [u8]> {
    let subject = || format!("record \"{key}\"");
    let damaged = |why: &str| Error::new(Kind::Corrupt, subject(), format!("is damaged: {why}")).help(RESTORE);
    let mut parts = record.splitn(3, |byte| *byte == b' ');
    let format = parts.next().and_then(|part| std::str::from_utf8(part).ok()?.parse::<u32>().ok());
    match format {
        Some(format) if format > FORMAT => {
            return Err(Error::new(
                Kind::Corrupt,
                subject(),
                format!("has format {format}; this neap knows up to {FORMAT}"),
            )
            .help("run the newer neap that wrote it"));
        }
        Some(_) => {}
        None => return Err(damaged("no format number")),
    }
    let sum = parts.next().and_then(|part| u32::from_str_radix(std::str::from_utf8(part).ok()?, 16).ok());
    let json = parts.next().unwrap_or_default();
    if sum != Some(checksum(json)) {
        return Err(damaged("its checksum does not fit"));
    }
    Ok(json)
}

// FNV-1a, 32 bits: finds a flipped or torn byte; it does not guard against malice, which file modes do.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_and_refuses() {
        let record = encode(&vec![1, 2, 3]);
        assert_eq!(decode::<Vec<u8>>("k", &record).unwrap(), [1, 2, 3]);
        let mut flipped = record.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(decode::<Vec<u8>>("k", &flipped).unwrap_err().message.contains("damaged"));
        let newer = [b"2", &record[1..]].concat();
        assert!(decode::<Vec<u8>>("k", &newer).unwrap_err().message.contains("has format 2"));
        assert!(decode::<Vec<u8>>("k", b"").is_err());
    }
}
