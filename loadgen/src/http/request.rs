//! The bytes of a request, made once and sent many times.

use url::{Host, Url};

use crate::body::{BodyError, Template};

/// Why a request cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No URL.
    #[error("`{url}` is no URL ({error}): write it as http://HOST:PORT/PATH")]
    Url {
        /// What was given.
        url: String,
        /// Why.
        error: url::ParseError,
    },
    /// TLS.
    #[error(
        "`{0}`: https is not supported: marks are taken on the plain bytes; point loadgen at the \
         service's http port"
    )]
    Https(String),
    /// Another scheme.
    #[error("`{0}`: only http:// URLs can be loaded")]
    Scheme(String),
    /// user:password@
    #[error("`{0}`: credentials in a URL are not sent; use --header 'Authorization: ...'")]
    Credentials(String),
    /// No token of RFC 9110.
    #[error("`{0}` is no HTTP method")]
    Method(String),
    /// Not `Name: value`.
    #[error("header `{0}`: write it as 'NAME: VALUE', with visible characters only")]
    Header(String),
    /// A header that follows from the body.
    #[error("header `{0}` follows from the body and cannot be set")]
    Framing(String),
    /// A form field.
    #[error(transparent)]
    Body(#[from] BodyError),
}

/// Where a URL points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// Port; 80 if the URL names none.
    pub port: u16,
    /// The Host header's value.
    pub authority: String,
    /// Path and query.
    pub path: String,
}

impl Target {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// [`RequestError`] where it is no plain http URL.
    pub fn parse(text: &str) -> Result<Self, RequestError> {
        let url =
            Url::parse(text).map_err(|error| RequestError::Url { url: text.to_owned(), error })?;
        match url.scheme() {
            "http" => {}
            "https" => return Err(RequestError::Https(text.to_owned())),
            _ => return Err(RequestError::Scheme(text.to_owned())),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(RequestError::Credentials(text.to_owned()));
        }
        let host = url.host().ok_or_else(|| RequestError::Scheme(text.to_owned()))?;
        let plain = match &host {
            Host::Domain(name) => (*name).to_owned(),
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_string(),
        };
        let path = url
            .query()
            .map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
        Ok(Self { host: plain, port: url.port().unwrap_or(80), authority, path })
    }
}

/// What every user sends.
#[derive(Clone, Debug)]
pub struct RequestSpec {
    /// The whole request; random spans change from one use to the next.
    pub template: Template,
    /// The method is HEAD: responses have no body whatever their headers say.
    pub head: bool,
    /// The request says `Connection: close`.
    pub close: bool,
}

impl RequestSpec {
    /// Builds the request. `headers` are `NAME: VALUE` and replace a default of the same name.
    ///
    /// # Errors
    /// [`RequestError`] where the method, a header or a form field is malformed.
    pub fn new<S: AsRef<str>>(
        method: &str,
        target: &Target,
        headers: &[S],
        form: &[S],
    ) -> Result<Self, RequestError> {
        if method.is_empty() || !method.bytes().all(is_token) {
            return Err(RequestError::Method(method.to_owned()));
        }
        let mut lines = vec![
            ("Host".to_owned(), target.authority.clone()),
            ("User-Agent".to_owned(), concat!("dwell-loadgen/", env!("CARGO_PKG_VERSION")).into()),
            ("Accept".to_owned(), "*/*".to_owned()),
        ];
        if !form.is_empty() {
            let kind = "application/x-www-form-urlencoded";
            lines.push(("Content-Type".to_owned(), kind.to_owned()));
        }
        let defaults = lines.len();
        let mut close = false;
        for header in headers.iter().map(AsRef::as_ref) {
            let (name, value) = split_header(header)?;
            if ["content-length", "transfer-encoding"].contains(&&*name.to_ascii_lowercase()) {
                return Err(RequestError::Framing(name.to_owned()));
            }
            if name.eq_ignore_ascii_case("connection") {
                close |= value.split(',').any(|t| t.trim().eq_ignore_ascii_case("close"));
            }
            let same = |line: &(String, String)| line.0.eq_ignore_ascii_case(name);
            match lines[..defaults].iter().position(same) {
                Some(at) => lines[at] = (name.to_owned(), value.to_owned()),
                None => lines.push((name.to_owned(), value.to_owned())),
            }
        }
        let mut template = Template::form(form)?;
        if !form.is_empty() || ["POST", "PUT", "PATCH"].contains(&method) {
            lines.push(("Content-Length".to_owned(), template.bytes().len().to_string()));
        }
        let mut head = format!("{method} {} HTTP/1.1\r\n", target.path);
        for (name, value) in lines {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        template.prepend(head.as_bytes());
        Ok(Self { template, head: method == "HEAD", close })
    }
}

/// RFC 9110, section 5.6.2.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.')
        || matches!(byte, b'^'..=b'`' | b'|' | b'~')
}

fn split_header(header: &str) -> Result<(&str, &str), RequestError> {
    let error = || RequestError::Header(header.to_owned());
    let (name, value) = header.split_once(':').ok_or_else(error)?;
    let value = value.trim_matches([' ', '\t']);
    let visible = |byte: u8| byte == b'\t' || byte >= b' ' && byte != 0x7f;
    if name.is_empty() || !name.bytes().all(is_token) || !value.bytes().all(visible) {
        return Err(error());
    }
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, url: &str, headers: &[&str], form: &[&str]) -> String {
        let target = Target::parse(url).unwrap();
        let spec = RequestSpec::new(method, &target, headers, form).unwrap();
        String::from_utf8(spec.template.bytes().to_vec()).unwrap()
    }

    #[test]
    fn a_get_has_the_defaults_and_no_body() {
        let text = request("GET", "http://Example.org:8000/a b?c=d#e", &[], &[]);
        assert!(
            text.starts_with("GET /a%20b?c=d HTTP/1.1\r\nHost: example.org:8000\r\n"),
            "{text}"
        );
        assert!(text.ends_with("\r\nAccept: */*\r\n\r\n"), "{text}");
        assert!(!text.contains("Content-Length"));
    }

    #[test]
    fn a_form_has_its_type_and_length() {
        let text = request("POST", "http://[::1]/", &["accept: a/b"], &["t=Post {random:4}"]);
        assert!(text.contains("Host: [::1]\r\n"), "{text}");
        assert!(text.contains("accept: a/b\r\n") && !text.contains("*/*"), "{text}");
        assert!(text.contains("Content-Type: application/x-www-form-urlencoded\r\n"));
        assert!(text.contains("Content-Length: 11\r\n\r\nt=Post+"), "{text}");
    }

    #[test]
    fn an_empty_post_says_so() {
        assert!(request("POST", "http://h/", &[], &[]).contains("Content-Length: 0\r\n"));
    }

    #[test]
    fn connection_close_is_noticed() {
        let target = Target::parse("http://h/").unwrap();
        let close = |h: &str| RequestSpec::new("GET", &target, &[h], &[]).unwrap().close;
        assert!(close("Connection: Close"));
        assert!(!close("Connection: keep-alive"));
    }

    #[test]
    fn bad_input_is_named() {
        let url = |text: &str| Target::parse(text).unwrap_err().to_string();
        assert!(url("https://h/").contains("https is not supported"));
        assert!(url("h:80/").contains("only http:// URLs"));
        assert!(url("/x").contains("is no URL"));
        assert!(url("http://u:p@h/").contains("credentials"));
        let target = Target::parse("http://h/").unwrap();
        let spec = |method: &str, header: &str| {
            RequestSpec::new(method, &target, &[header], &[]).unwrap_err().to_string()
        };
        assert!(spec("G T", "a: b").contains("`G T` is no HTTP method"));
        assert!(spec("GET", "a").contains("write it as"));
        assert!(spec("GET", "a b: c").contains("write it as"));
        assert!(spec("GET", "a: b\r\nc: d").contains("write it as"));
        assert!(spec("GET", "Content-length: 3").contains("follows from the body"));
    }
}
