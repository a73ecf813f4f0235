//! A small server of S3: one bucket in memory, with what clients of a registry's bucket ask for, which can be made to fail.
#![allow(dead_code, reason = "each user needs its part")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use sha2::Digest as _;

pub const KEY: &str = "test-key";
pub const SECRET: &str = "test-secret";
/// How many names a page has: small, so that there are several.
const PAGE: usize = 25;

/// What becomes of requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Nothing is done, and that is said.
    Down,
    /// What is written waits until another mode is set.
    Hold,
    /// What is written is done, and nobody is told.
    Deaf,
    /// What is there already is written over where it was not to be: as servers do that do not know of conditions.
    Unconditional,
    /// Once something has been created, nothing is read any more whose name holds this.
    Unread(&'static str),
}

#[derive(Clone)]
pub struct Object {
    pub bytes: Vec<u8>,
    at: u64,
}

pub struct Bucket {
    pub port: u16,
    pub objects: Mutex<BTreeMap<String, Object>>,
    parts: Mutex<BTreeMap<String, BTreeMap<u32, Vec<u8>>>>,
    mode: Mutex<Mode>,
    changed: Condvar,
    next: AtomicU64,
    /// `PUT blobs/...`, as they came.
    seen: Mutex<Vec<String>>,
    /// How much was sent to clients.
    pub sent: AtomicU64,
}

struct Asked {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer(u16, Vec<(String, String)>, Vec<u8>);

fn decoded(text: &str) -> String {
    let (bytes, mut at) = (text.as_bytes(), 0);
    let mut out = Vec::new();
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                out.push(u8::from_str_radix(&text[at + 1..at + 3], 16).unwrap());
                at += 2;
            }
            b'+' => out.push(b' '),
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).unwrap()
}

fn etag(bytes: &[u8]) -> String {
    format!("\"{}\"", &crate::oci::digest(bytes)[7..39])
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn between(text: &str, before: &str, after: &str) -> Vec<String> {
    text.split(before).skip(1).filter_map(|rest| Some(rest.split_once(after)?.0.to_owned())).collect()
}

impl Bucket {
    /// Serves `bucket`, for as long as the process lives.
    pub fn start() -> Arc<Self> {
        Self::at("127.0.0.1")
    }

    /// The same at another address of this machine.
    pub fn at(address: &str) -> Arc<Self> {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let bucket = Arc::new(Bucket {
            port: listener.local_addr().unwrap().port(),
            objects: Mutex::default(),
            parts: Mutex::default(),
            mode: Mutex::new(Mode::Pass),
            changed: Condvar::new(),
            next: AtomicU64::new(1),
            seen: Mutex::default(),
            sent: AtomicU64::new(0),
        });
        let shared = bucket.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = shared.clone();
                std::thread::spawn(move || drop(shared.serve(client)));
            }
        });
        bucket
    }

    pub fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
        self.changed.notify_all();
    }

    pub fn taken(&self) -> Vec<String> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    /// What a registry is told to keep its images here as well.
    pub fn env(&self) -> Vec<(String, String)> {
        [
            ("NEAP_REGISTRY_BUCKET", "s3://bucket/some/where".to_owned()),
            ("NEAP_REGISTRY_ENDPOINT", format!("http://127.0.0.1:{}", self.port)),
            ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// Something of a few bytes that has been there for so many seconds.
    pub fn age(&self, folder: &str, name: String, seconds: u64) {
        let object = Object { bytes: b"stray".to_vec(), at: now() - seconds };
        self.objects.lock().unwrap().insert(format!("some/where/{folder}{name}"), object);
    }

    /// Names below the prefix that begin so.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let objects = self.objects.lock().unwrap();
        let names = objects.keys().filter_map(|name| name.strip_prefix("some/where/"));
        names.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
    }

    fn serve(&self, client: TcpStream) -> std::io::Result<()> {
        client.set_nodelay(true)?;
        let mut out = client.try_clone()?;
        let mut client = BufReader::new(client);
        while let Some(asked) = read(&mut client)? {
            let is_head = asked.method == "HEAD";
            let is_write = matches!(asked.method.as_str(), "PUT" | "POST" | "DELETE");
            let mut mode = self.mode.lock().unwrap();
            while is_write && *mode == Mode::Hold {
                mode = self.changed.wait(mode).unwrap();
            }
            let mode = mode.clone();
            if mode == Mode::Down {
                write(&mut out, is_head, Answer(503, Vec::new(), b"<Error><Code>SlowDown</Code></Error>".to_vec()))?;
                continue;
            }
            let created = {
                let mut seen = self.seen.lock().unwrap();
                seen.push(format!("{} {}", asked.method, asked.path));
                seen.iter().any(|line| line.starts_with("PUT") && line.contains("/log/"))
            };
            if matches!(mode, Mode::Unread(text) if created && asked.method == "GET" && asked.path.contains(text)) {
                write(&mut out, is_head, Answer(503, Vec::new(), b"<Error><Code>SlowDown</Code></Error>".to_vec()))?;
                continue;
            }
            let answer = self.answer(&asked, mode == Mode::Unconditional);
            if is_write && mode == Mode::Deaf {
                return Ok(());
            }
            self.sent.fetch_add(answer.2.len() as u64, Ordering::Relaxed);
            write(&mut out, is_head, answer)?;
        }
        Ok(())
    }

    fn answer(&self, asked: &Asked, is_unconditional: bool) -> Answer {
        let says = asked.headers.get("authorization").map_or("", String::as_str);
        if !says.starts_with(&format!("AWS4-HMAC-SHA256 Credential={KEY}/")) || !says.contains("Signature=") {
            return Answer(403, Vec::new(), b"<Error><Code>AccessDenied</Code></Error>".to_vec());
        }
        // What is signed is what came.
        let hash: String = sha2::Sha256::digest(&asked.body).iter().map(|byte| format!("{byte:02x}")).collect();
        if asked.headers.get("x-amz-content-sha256") != Some(&hash) {
            return Answer(400, Vec::new(), b"<Error><Code>XAmzContentSHA256Mismatch</Code></Error>".to_vec());
        }
        let Some(key) = asked.path.strip_prefix("/bucket") else {
            return Answer(404, Vec::new(), b"<Error><Code>NoSuchBucket</Code></Error>".to_vec());
        };
        let key = key.trim_start_matches('/').to_owned();
        let upload = asked.query.get("uploadId");
        match (asked.method.as_str(), upload) {
            ("GET", None) if key.is_empty() => self.list(asked),
            ("GET" | "HEAD", None) => self.get(&key, asked),
            ("PUT", None) => {
                let mut objects = self.objects.lock().unwrap();
                let is_new = asked.headers.get("if-none-match").is_some_and(|value| value == "*");
                if is_new && !is_unconditional && objects.contains_key(&key) {
                    return Answer(412, Vec::new(), b"<Error><Code>PreconditionFailed</Code></Error>".to_vec());
                }
                objects.insert(key, Object { bytes: asked.body.clone(), at: now() });
                Answer(200, vec![("ETag".into(), etag(&asked.body))], Vec::new())
            }
            ("POST", None) if asked.query.contains_key("uploads") => {
                let id = format!("upload{}", self.next.fetch_add(1, Ordering::SeqCst));
                self.parts.lock().unwrap().insert(id.clone(), BTreeMap::new());
                let text =
                    format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>");
                Answer(200, Vec::new(), text.into_bytes())
            }
            ("POST", None) if asked.query.contains_key("delete") => {
                let keys = between(&String::from_utf8_lossy(&asked.body), "<Key>", "</Key>");
                keys.iter().for_each(|key| _ = self.objects.lock().unwrap().remove(key));
                let gone: String = keys.iter().map(|key| format!("<Deleted><Key>{key}</Key></Deleted>")).collect();
                Answer(200, Vec::new(), format!("<DeleteResult>{gone}</DeleteResult>").into_bytes())
            }
            ("PUT", Some(id)) => {
                let number = asked.query["partNumber"].parse().unwrap();
                match self.parts.lock().unwrap().get_mut(id) {
                    Some(parts) => _ = parts.insert(number, asked.body.clone()),
                    None => return Answer(404, Vec::new(), b"<Error><Code>NoSuchUpload</Code></Error>".to_vec()),
                }
                Answer(200, vec![("ETag".into(), etag(&asked.body))], Vec::new())
            }
            ("POST", Some(id)) => {
                let Some(parts) = self.parts.lock().unwrap().remove(id) else {
                    return Answer(404, Vec::new(), b"<Error><Code>NoSuchUpload</Code></Error>".to_vec());
                };
                let bytes: Vec<u8> = parts.into_values().flatten().collect();
                let tag = etag(&bytes);
                self.objects.lock().unwrap().insert(key, Object { bytes, at: now() });
                let text = format!("<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>");
                Answer(200, Vec::new(), text.into_bytes())
            }
            ("DELETE", Some(id)) => {
                self.parts.lock().unwrap().remove(id);
                Answer(204, Vec::new(), Vec::new())
            }
            ("DELETE", None) => {
                self.objects.lock().unwrap().remove(&key);
                Answer(204, Vec::new(), Vec::new())
            }
            _ => Answer(400, Vec::new(), b"<Error><Code>NotImplemented</Code></Error>".to_vec()),
        }
    }

    fn get(&self, key: &str, asked: &Asked) -> Answer {
        let Some(object) = self.objects.lock().unwrap().get(key).cloned() else {
            return Answer(404, Vec::new(), b"<Error><Code>NoSuchKey</Code></Error>".to_vec());
        };
        let at = jiff::Timestamp::from_second(object.at as i64).unwrap();
        let at = at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let mut headers = vec![("ETag".into(), etag(&object.bytes)), ("Last-Modified".into(), at)];
        let from =
            asked.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        match from {
            Some(from) if from < object.bytes.len() => {
                let size = object.bytes.len();
                headers.push(("Content-Range".into(), format!("bytes {from}-{}/{size}", size - 1)));
                Answer(206, headers, object.bytes[from..].to_vec())
            }
            Some(_) => Answer(416, headers, Vec::new()),
            None => Answer(200, headers, object.bytes),
        }
    }

    fn list(&self, asked: &Asked) -> Answer {
        let (prefix, behind) =
            (asked.query.get("prefix").cloned().unwrap_or_default(), asked.query.get("continuation-token"));
        let objects = self.objects.lock().unwrap();
        let mut found =
            objects.iter().filter(|(name, _)| name.starts_with(&prefix) && behind.is_none_or(|behind| *name > behind));
        let page: Vec<_> = found.by_ref().take(PAGE).collect();
        let more = found.next().is_some();
        let mut text = format!("<ListBucketResult><IsTruncated>{more}</IsTruncated>");
        if let (true, Some((last, _))) = (more, page.last()) {
            text += &format!("<NextContinuationToken>{last}</NextContinuationToken>");
        }
        for (name, object) in page {
            let at = jiff::Timestamp::from_second(object.at as i64).unwrap();
            text += &format!(
                "<Contents><Key>{name}</Key><LastModified>{at}</LastModified><Size>{}</Size><ETag>{}</ETag></Contents>",
                object.bytes.len(),
                etag(&object.bytes).replace('"', "&quot;")
            );
        }
        Answer(200, Vec::new(), (text + "</ListBucketResult>").into_bytes())
    }
}

fn read(client: &mut BufReader<TcpStream>) -> std::io::Result<Option<Asked>> {
    let mut line = String::new();
    if client.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query.split('&').filter(|part| !part.is_empty()).map(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decoded(name), decoded(value))
    });
    let query = query.collect();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if client.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    client.read_exact(&mut body)?;
    Ok(Some(Asked { method, path: decoded(path), query, headers, body }))
}

fn write(out: &mut TcpStream, is_head: bool, answer: Answer) -> std::io::Result<()> {
    let Answer(status, headers, body) = answer;
    let mut head = format!("HTTP/1.1 {status} .\r\nContent-Length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    out.write_all(format!("{head}\r\n").as_bytes())?;
    if !is_head {
        out.write_all(&body)?;
    }
    Ok(())
}
