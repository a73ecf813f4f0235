//! Paths as routes are compared with.

use std::borrow::Cow;

/// A path decoded, but for what separates its names; each separator once. What leaves the folder that it names is refused, since the
/// program behind may follow it past its route; so is what is no path at all.
pub fn plain_path(path: &str) -> Result<Cow<'_, str>, &'static str> {
    let bytes = path.as_bytes();
    let special = |at: usize| match bytes[at] {
        b'%' | b'\\' => true,
        b'/' => matches!(bytes.get(at + 1), Some(b'/' | b'.')),
        _ => false,
    };
    if !(0..bytes.len()).any(special) {
        return Ok(Cow::Borrowed(path));
    }
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let mut byte = bytes[at];
        at += 1;
        if byte == b'%' {
            let two = bytes.get(at..at + 2).filter(|two| two.iter().all(u8::is_ascii_hexdigit));
            let decoded = two.and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
            let decoded = decoded.ok_or("a \"%\" without two digits behind it")?;
            if decoded == 0 {
                return Err("a zero byte in the path");
            }
            at += 2;
            if matches!(decoded, b'/' | b'\\' | b'%') {
                // It may be a part of a name, or separate two: it stays as it is.
                plain.extend_from_slice(&bytes[at - 3..at]);
                continue;
            }
            byte = decoded;
        }
        if byte == b'/' && plain.last() == Some(&b'/') {
            continue;
        }
        plain.push(byte);
    }
    let text = String::from_utf8_lossy(&plain).into_owned();
    let folded =
        text.replace("%2F", "/").replace("%2f", "/").replace("%5C", "/").replace("%5c", "/").replace('\\', "/");
    // Some servers take what follows a ";" off a name before they look at it.
    let name = |name: &str| name.split(';').next().is_some_and(|name| name == ".." || name == ".");
    if folded.split('/').any(name) {
        return Err("a path with \".\" or \"..\"");
    }
    Ok(Cow::Owned(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_out_is_refused() {
        #[rustfmt::skip]
        let wrong = [
            "/a/../b", "/./a", "/a/..", "/%2e%2e/x", "/a/%2E.", "/a/..%2fb", "/a\\..\\b", "/%", "/%zz", "/%+f", "/%00", "/a/..;x/b",
            "/a/..%3Bx/b", "/a/%2e%2e;/b",
        ];
        for path in wrong {
            assert!(plain_path(path).is_err(), "{path}");
        }
        assert_eq!(plain_path("/a/.well-known/..x").unwrap(), "/a/.well-known/..x");
        assert_eq!(plain_path("//%61/b%2Fc").unwrap(), "/a/b%2Fc");
    }

    proptest::proptest! {
        #[test]
        fn any_path_is_plain_or_refused(path in "/[a-z%/.0-9\\\\;]{0,20}") {
            if let Ok(plain) = plain_path(&path) {
                proptest::prop_assert!(!plain.contains("//"));
                proptest::prop_assert!(!plain.split('/').any(|name| name == ".."));
            }
        }
    }
}
