//! The little of HTTP/1.1 that the client needs: where an answer begins and where it ends.

/// Reads an answer as it comes in. `100 Continue` and its like are skipped.
#[derive(Debug, Default)]
pub(super) struct Answer {
    head: Vec<u8>,
    body: Body,
    status: u16,
    /// The connection may carry another request after this answer.
    keeps: bool,
    got_continue: bool,
}

#[derive(Debug, Default)]
enum Body {
    /// The header is not complete.
    #[default]
    None,
    Length(u64),
    Chunked(Chunk),
    UntilClose,
    Done,
}

#[derive(Debug)]
enum Chunk {
    Size(Vec<u8>),
    Data(u64),
    /// The lines after the last chunk; true: nothing yet of the current line.
    Trailer(bool),
}

/// Longer than any header that the harness's servers send.
const MAX_HEAD: usize = 64 * 1024;

impl Answer {
    /// Takes bytes in. `Err`: this is not HTTP/1.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            let used = match &mut self.body {
                Body::None => self.feed_head(bytes)?,
                Body::Length(left) => {
                    let n = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= n as u64;
                    if *left == 0 {
                        self.body = Body::Done;
                    }
                    n
                }
                Body::Chunked(_) => self.feed_chunk(bytes)?,
                Body::UntilClose => bytes.len(),
                Body::Done => return Err("bytes after the answer"),
            };
            bytes = &bytes[used..];
        }
        Ok(())
    }

    fn feed_head(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        let search_from = before.saturating_sub(3);
        let Some(end) = self.head[search_from..].windows(4).position(|w| w == b"\r\n\r\n") else {
            return if self.head.len() > MAX_HEAD { Err("a header without an end") } else { Ok(bytes.len()) };
        };
        let end = search_from + end + 4;
        self.head.truncate(end);
        let head = String::from_utf8_lossy(&self.head).into_owned();
        self.head.clear();
        self.take_head(&head)?;
        Ok(end - before)
    }

    fn take_head(&mut self, head: &str) -> Result<(), &'static str> {
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let status = first.strip_prefix("HTTP/1.").and_then(|r| r.split(' ').nth(1)).and_then(|s| s.parse().ok());
        let status: u16 = status.ok_or("not an HTTP/1 answer")?;
        if (100..200).contains(&status) {
            self.got_continue = true;
            return Ok(());
        }
        (self.status, self.keeps) = (status, true);
        self.body = if status == 204 || status == 304 { Body::Done } else { Body::UntilClose };
        for (name, value) in lines.filter_map(|l| l.split_once(':')) {
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    let n = value.parse().map_err(|_| "a bad Content-Length")?;
                    self.body = if n == 0 { Body::Done } else { Body::Length(n) };
                }
                "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => {
                    self.body = Body::Chunked(Chunk::Size(Vec::new()));
                }
                "connection" if value.eq_ignore_ascii_case("close") => self.keeps = false,
                _ => {}
            }
        }
        self.keeps &= !matches!(self.body, Body::UntilClose);
        Ok(())
    }

    fn feed_chunk(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let Body::Chunked(chunk) = &mut self.body else { return Ok(0) };
        match chunk {
            Chunk::Size(line) => {
                line.push(bytes[0]);
                if line.len() > 32 {
                    return Err("a bad chunk size");
                }
                if line.ends_with(b"\r\n") && line.len() > 2 {
                    let text = String::from_utf8_lossy(&line[..line.len() - 2]).into_owned();
                    let n = u64::from_str_radix(text.trim(), 16).map_err(|_| "a bad chunk size")?;
                    // The data is followed by CR LF of its own.
                    *chunk = if n == 0 { Chunk::Trailer(true) } else { Chunk::Data(n + 2) };
                }
                Ok(1)
            }
            Chunk::Data(left) => {
                let n = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= n as u64;
                if *left == 0 {
                    *chunk = Chunk::Size(Vec::new());
                }
                Ok(n)
            }
            Chunk::Trailer(empty) => {
                match bytes[0] {
                    b'\n' if *empty => self.body = Body::Done,
                    b'\n' => *empty = true,
                    b'\r' => {}
                    _ => *empty = false,
                }
                Ok(1)
            }
        }
    }

    /// The end of the connection ends some answers.
    pub(super) fn closed(&mut self) {
        if matches!(self.body, Body::UntilClose) {
            self.body = Body::Done;
        }
    }

    pub(super) fn complete(&self) -> bool {
        matches!(self.body, Body::Done)
    }

    /// A byte of a final answer came.
    pub(super) fn begun(&self) -> bool {
        !self.head.is_empty() || !matches!(self.body, Body::None)
    }

    pub(super) fn may_send_body(&self) -> bool {
        self.got_continue
    }

    pub(super) fn status(&self) -> u16 {
        self.status
    }

    pub(super) fn keeps(&self) -> bool {
        self.keeps
    }
}

#[cfg(test)]
mod tests {
    use super::Answer;

    fn feed(parts: &[&str]) -> Answer {
        let mut a = Answer::default();
        for p in parts {
            a.feed(p.as_bytes()).unwrap();
        }
        a
    }

    #[test]
    fn ends_by_length_however_it_is_cut() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nstatic\n";
        for cut in 1..whole.len() {
            let mut a = feed(&[&whole[..cut]]);
            assert!(!a.complete(), "complete after {cut} bytes");
            assert!(a.begun());
            a.feed(&whole.as_bytes()[cut..]).unwrap();
            assert!(a.complete() && a.keeps() && a.status() == 200);
        }
    }

    #[test]
    fn ends_by_last_chunk_and_trailer() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for cut in 1..20 {
            let body = "3\r\nabc\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\n";
            let a = feed(&[head, &body[..cut], &body[cut..]]);
            assert!(a.complete() && a.keeps());
        }
        assert!(!feed(&[head, "3\r\nabc\r\n0\r\n"]).complete());
    }

    #[test]
    fn skips_interim_answers() {
        let a = feed(&["HTTP/1.1 100 Continue\r\n\r\n"]);
        assert!(a.may_send_body() && !a.begun() && !a.complete());
        let a = feed(&[
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ]);
        assert!(a.complete() && !a.keeps() && a.status() == 413);
    }

    #[test]
    fn without_length_the_close_ends_it() {
        let mut a = feed(&["HTTP/1.0 200 OK\r\n\r\nbody"]);
        assert!(!a.complete());
        a.closed();
        assert!(a.complete() && !a.keeps());
    }

    #[test]
    fn refuses_what_is_not_http() {
        assert!(Answer::default().feed(b"SSH-2.0-x\r\n\r\n").is_err());
        assert!(feed(&["HTTP/1.1 204 No\r\n\r\n"]).feed(b"x").is_err());
    }
}
