//! How a lossy wire behaves, and its textual form, in which tests tell it to `lossy-link`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What a wire does to frames, in each direction. Everything random follows from the seed and the order of
/// the frames.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    /// Each frame arrives this much later.
    pub delay: Duration,
    /// Up to this much more, evenly; frames may overtake each other.
    pub jitter: Duration,
    /// Share of frames lost, 0 to 1. With 1 the wire is silently dead.
    pub loss: f64,
    /// Share of frames that arrive twice.
    pub duplicate: f64,
    /// Share of frames that are held back behind those of the next `reorder_by`.
    pub reorder: f64,
    /// How long a frame is held back.
    pub reorder_by: Duration,
    /// Kilobits a second; 0 for no limit.
    pub kbit: u64,
    /// Frames under way in a direction; more are dropped.
    pub limit: usize,
    /// Where chance begins.
    pub seed: u64,
}

impl Default for Profile {
    fn default() -> Profile {
        Profile {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(10),
            kbit: 0,
            limit: 10_000,
            seed: 1,
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Profile { delay, jitter, loss, duplicate, reorder, reorder_by, kbit, limit, seed } = self;
        let (delay, jitter, by) = (delay.as_micros(), jitter.as_micros(), reorder_by.as_micros());
        write!(f, "delay={delay} jitter={jitter} loss={loss} duplicate={duplicate} reorder={reorder} ")?;
        write!(f, "reorder_by={by} kbit={kbit} limit={limit} seed={seed}")
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Profile, String> {
        let mut profile = Profile::default();
        for word in text.split_whitespace() {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("`{word}` is no key=value"))?;
            let bad = |_| format!("`{value}` is no value for {key}");
            let number = || value.parse::<u64>().map_err(|e| bad(e.to_string()));
            let time = || number().map(Duration::from_micros);
            let share = || match value.parse::<f64>() {
                Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
                _ => Err(bad(String::new())),
            };
            match key {
                "delay" => profile.delay = time()?,
                "jitter" => profile.jitter = time()?,
                "loss" => profile.loss = share()?,
                "duplicate" => profile.duplicate = share()?,
                "reorder" => profile.reorder = share()?,
                "reorder_by" => profile.reorder_by = time()?,
                "kbit" => profile.kbit = number()?,
                "limit" => profile.limit = number()? as usize,
                "seed" => profile.seed = number()?,
                _ => return Err(format!("`{key}` is not known")),
            }
        }
        Ok(profile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let profile =
            Profile { loss: 0.125, kbit: 900, delay: Duration::from_millis(20), ..Profile::default() };
        assert_eq!(profile.to_string().parse(), Ok(profile));
        for bad in ["loss=2", "loss=x", "delay", "what=1", "seed=-1"] {
            assert!(bad.parse::<Profile>().is_err(), "{bad}");
        }
    }
}
