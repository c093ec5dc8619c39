//! HTTP proxies: which one, and CONNECT (RFC 9110 section 9.3.6).

use data_encoding::BASE64;
use shadowmesh_identity::HostPort;
use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

/// Longest answer to CONNECT, bytes.
const ANSWER: usize = 16 << 10;
/// Where programs look for a proxy's URL.
const ENVIRONMENT: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

/// An HTTP proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Where it is.
    pub place: HostPort,
    /// `user:password`, as it stands in the URL.
    login: Option<String>,
}

/// It shows no password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.place)
    }
}

impl FromStr for Proxy {
    type Err = &'static str;

    /// `http://[user:password@]host[:port]`, or what is behind the `//` alone.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some(_) => return Err("only http:// proxies are supported"),
            None => text,
        };
        let rest = rest.split('/').next().unwrap_or_default();
        let (login, at) = rest.rsplit_once('@').map_or((None, rest), |(l, at)| (Some(l), at));
        let with_port = |t: &str| t.parse::<HostPort>().ok();
        let place = with_port(at).or_else(|| with_port(&format!("{at}:80"))).ok_or("it names no host")?;
        let login = login.map(decoded).transpose()?;
        Ok(Proxy { place, login })
    }
}

/// Percent-decoding, of a login.
fn decoded(text: &str) -> Result<String, &'static str> {
    let mut out = vec![];
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let hex = [bytes.next(), bytes.next()].map(|d| d.and_then(|d| (d as char).to_digit(16)));
        let [Some(high), Some(low)] = hex else { return Err("its login is malformed") };
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).map_err(|_| "its login is malformed")
}

static CONFIGURED: Mutex<Option<Proxy>> = Mutex::new(None);

/// The configuration names this proxy.
pub fn configure(proxy: Option<Proxy>) {
    *CONFIGURED.lock().unwrap_or_else(PoisonError::into_inner) = proxy;
}

/// By which a host may be reached: the configured one, or that of the environment.
pub fn for_host(host: &str) -> Option<Proxy> {
    let configured = CONFIGURED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if configured.is_some() {
        return configured;
    }
    let value = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let spared = value("no_proxy").or_else(|| value("NO_PROXY")).unwrap_or_default();
    if spares(&spared, host) {
        return None;
    }
    ENVIRONMENT.iter().find_map(|name| value(name)?.parse().ok())
}

/// Is this host in a list of those that are reached without a proxy?
fn spares(list: &str, host: &str) -> bool {
    list.split(',')
        .map(|e| e.trim().trim_start_matches('.'))
        .filter(|e| !e.is_empty())
        .any(|e| e == "*" || host == e || host.strip_suffix(e).is_some_and(|rest| rest.ends_with('.')))
}

/// Has the proxy connect the stream to a place.
pub fn tunnel(stream: &mut (impl Read + Write), proxy: &Proxy, to: &HostPort) -> io::Result<()> {
    let login = proxy.login.as_ref().map(|l| {
        let encoded = BASE64.encode(l.as_bytes());
        format!("Proxy-Authorization: Basic {encoded}\r\n")
    });
    let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{}\r\n", login.unwrap_or_default());
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut answer = vec![];
    loop {
        // A byte at a time: what follows the head is the relay's.
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        answer.push(byte[0]);
        if !answer.ends_with(b"\r\n\r\n") {
            if answer.len() >= ANSWER {
                return Err(wrong("its answer is too long".into()));
            }
            continue;
        }
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        response.parse(&answer).map_err(|e| wrong(format!("its answer is no HTTP: {e}")))?;
        return match response.code {
            Some(200..=299) => Ok(()),
            Some(407) => Err(wrong("it asks for a login: http://user:password@host:port".into())),
            code => Err(wrong(format!("it answers {}", code.unwrap_or_default()))),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let of = |t: &str| t.parse::<Proxy>();
        assert_eq!(of("http://proxy.corp:3128").unwrap().to_string(), "http://proxy.corp:3128");
        assert_eq!(of("proxy.corp").unwrap().to_string(), "http://proxy.corp:80");
        assert_eq!(of("http://[2001:db8::1]:8080/").unwrap().place.port(), 8080);
        let with = of("http://me:p%40ss@proxy:8080").unwrap();
        assert_eq!(with.login.as_deref(), Some("me:p@ss"));
        assert!(!with.to_string().contains("ss"));
        for wrong in ["https://proxy:1", "socks5://p:1", "http://", "http://a:b@", "http://%zz:a@b:1"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_is_spared() {
        for (list, host, is) in [
            ("", "a.b", false),
            ("a.b", "a.b", true),
            (".b, c", "a.b", true),
            ("b", "a.b", true),
            ("b", "ab", false),
            ("*", "x", true),
        ] {
            assert_eq!(spares(list, host), is, "{list} {host}");
        }
    }

    /// What was written, and what is read.
    struct Wire(Vec<u8>, io::Cursor<Vec<u8>>);

    impl Read for Wire {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.1.read(buf)
        }
    }

    impl Write for Wire {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.write(buf)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn connect_is_asked_for_and_answered() {
        let proxy: Proxy = "http://me:pw@proxy:1".parse().unwrap();
        let to = "relay.test:443".parse().unwrap();
        let ask = |answer: &str| {
            let mut wire = Wire(vec![], io::Cursor::new(answer.as_bytes().to_vec()));
            let result = tunnel(&mut wire, &proxy, &to);
            let mut rest = String::new();
            wire.1.read_to_string(&mut rest).unwrap();
            (result, String::from_utf8(wire.0).unwrap(), rest)
        };
        let (result, asked, rest) = ask("HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\nTLS");
        assert!(result.is_ok());
        assert!(asked.starts_with("CONNECT relay.test:443 HTTP/1.1\r\nHost: relay.test:443\r\n"), "{asked}");
        assert!(asked.contains("Proxy-Authorization: Basic bWU6cHc=\r\n"), "{asked}");
        assert_eq!(rest, "TLS");
        for (answer, said) in [
            ("HTTP/1.1 407 No\r\n\r\n", "login"),
            ("HTTP/1.1 403 No\r\n\r\n", "403"),
            ("SSH-2.0\r\n\r\n", "no HTTP"),
            ("HTTP/1.1 200", "failed to fill"),
        ] {
            let error = ask(answer).0.unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert!(ask(&"x".repeat(20 << 10)).0.unwrap_err().to_string().contains("too long"));
    }
}
