//! Datagrams in a stream, for where UDP is blocked: WebSocket (RFC 6455) over TLS 1.3. A binary message holds whole
//! datagrams, each behind its length in two bytes; they are the same that UDP would carry. [P-TCP]

use crate::WireError;

/// Largest message, bytes.
pub const MAX_MESSAGE: usize = 64 << 10;
/// Bytes before each datagram.
pub const LENGTH: usize = 2;
/// Largest datagram: all that UDP over IPv4 can carry (RFC 768), which fits a message.
pub const MAX_DATAGRAM: usize = 65_507;

/// Appends a datagram to a message; `false`, and nothing is changed, when it does not fit, or is none.
pub fn push(message: &mut Vec<u8>, datagram: &[u8]) -> bool {
    let fits = message.len() + LENGTH + datagram.len() <= MAX_MESSAGE;
    let length = u16::try_from(datagram.len()).ok().filter(|n| usize::from(*n) <= MAX_DATAGRAM && *n > 0);
    let (Some(length), true) = (length, fits) else { return false };
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(datagram);
    true
}

/// The next datagram of a message, and what is left behind it; `None` at its end.
///
/// # Errors
/// An empty datagram, one that is too large, or one that is not all there: the message is of something else.
#[allow(clippy::type_complexity, reason = "a datagram and the rest")]
pub fn next(message: &mut [u8]) -> Result<Option<(&mut [u8], &mut [u8])>, WireError> {
    if message.is_empty() {
        return Ok(None);
    }
    let (length, rest) = message.split_first_chunk_mut::<LENGTH>().ok_or(WireError::Truncated)?;
    let length = usize::from(u16::from_be_bytes(*length));
    match length {
        0 => Err(WireError::Malformed),
        n if n > MAX_DATAGRAM => Err(WireError::TooLong),
        n => rest.split_at_mut_checked(n).map(Some).ok_or(WireError::Truncated),
    }
}

/// Calls `each` with every datagram of a message, up to the first that is none.
///
/// # Errors
/// As [`next`].
pub fn datagrams<'a>(message: &'a mut [u8], mut each: impl FnMut(&'a mut [u8])) -> Result<(), WireError> {
    let mut rest = message;
    while let Some((datagram, behind)) = next(rest)? {
        each(datagram);
        rest = behind;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(message: &[u8]) -> (Vec<Vec<u8>>, Result<(), WireError>) {
        let (mut copy, mut found) = (message.to_vec(), vec![]);
        let result = datagrams(&mut copy, |d| found.push(d.to_vec()));
        (found, result)
    }

    #[test]
    fn hostile_lengths() {
        for (message, error) in [
            (&[0][..], WireError::Truncated),
            (&[0, 0], WireError::Malformed),
            (&[0, 1], WireError::Truncated),
            (&[0, 2, 9], WireError::Truncated),
            (&[0, 1, 9, 0, 0], WireError::Malformed),
            (&[0, 1, 9, 1], WireError::Truncated),
            (&[255, 255, 1], WireError::TooLong),
            (&[255, 0xe3, 1], WireError::Truncated),
        ] {
            assert_eq!(read(message).1, Err(error), "{message:?}");
        }
        assert_eq!(read(&[]), (vec![], Ok(())));
        // What stands before a length that lies is good.
        assert_eq!(read(&[0, 1, 9, 0, 5, 1]).0, [[9]]);
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let mut message = vec![];
        assert!(!push(&mut message, &[]));
        assert!(!push(&mut message, &vec![1; MAX_DATAGRAM + 1]));
        assert!(!push(&mut message, &vec![1; 1 << 17]));
        assert!(message.is_empty());
        assert!(push(&mut message, &vec![1; MAX_DATAGRAM]));
        assert!(push(&mut message, &[2; MAX_MESSAGE - MAX_DATAGRAM - 2 * LENGTH]));
        assert_eq!(message.len(), MAX_MESSAGE);
        assert!(!push(&mut message, &[3]));
        let sizes: Vec<usize> = read(&message).0.iter().map(Vec::len).collect();
        assert_eq!(sizes, [MAX_DATAGRAM, MAX_MESSAGE - MAX_DATAGRAM - 2 * LENGTH]);
    }

    proptest! {
        /// What is put in comes out, and nothing that is read is outside the message. [P-TCP]
        #[test]
        fn there_and_back(all in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..2000), 0..20)) {
            let mut message = vec![];
            for d in &all {
                prop_assert!(push(&mut message, d));
            }
            prop_assert_eq!(read(&message), (all, Ok(())));
        }

        #[test]
        fn anything_is_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let (found, _) = read(&bytes);
            let total: usize = found.iter().map(|d| d.len() + LENGTH).sum();
            prop_assert!(total <= bytes.len());
        }
    }
}
