//! Secret bytes: wiped on drop, compared in constant time, never printed.

use std::fmt;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// `N` secret bytes.
///
/// They live in one heap allocation, so that moving the value leaves no copy behind, and are wiped when it is
/// dropped. There is no `Clone` and no serialisation: whoever needs a copy says so with [`Secret::duplicate`].
pub struct Secret<const N: usize>(Box<[u8; N]>);

impl<const N: usize> Secret<N> {
    /// Takes the bytes over and wipes the copy on this stack frame (the caller's own copy is the caller's).
    pub fn new(mut bytes: [u8; N]) -> Self {
        let secret = Secret(Box::new(bytes));
        bytes.zeroize();
        secret
    }

    /// Draws the bytes from the operating system's generator.
    ///
    /// # Panics
    ///
    /// When the operating system has no randomness to give: nothing can go on safely then.
    pub fn random() -> Self {
        let mut secret = Secret(Box::new([0; N]));
        SystemRandom::new()
            .fill(&mut secret.0[..])
            .expect("the operating system's random number generator failed");
        secret
    }

    /// Builds the bytes in place, without a copy on the stack.
    ///
    /// # Errors
    ///
    /// Whatever `fill` returns.
    pub(crate) fn fill_with<E>(fill: impl FnOnce(&mut [u8; N]) -> Result<(), E>) -> Result<Self, E> {
        let mut secret = Secret(Box::new([0; N]));
        fill(&mut secret.0)?;
        Ok(secret)
    }

    /// The bytes themselves, for as long as this value lives.
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }

    /// A second copy, on purpose.
    pub fn duplicate(&self) -> Self {
        Secret(self.0.clone())
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<const N: usize> zeroize::ZeroizeOnDrop for Secret<N> {}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl<const N: usize> ConstantTimeEq for Secret<N> {
    fn ct_eq(&self, other: &Self) -> subtle::Choice {
        self.0.ct_eq(&other.0[..])
    }
}

/// In constant time.
impl<const N: usize> PartialEq for Secret<N> {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl<const N: usize> Eq for Secret<N> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing_of_the_bytes() {
        assert_eq!(format!("{:?}", Secret::new([0xAB; 32])), "Secret(..)");
        assert_eq!(format!("{:#?}", Some(Secret::new([0xAB; 4]))), "Some(\n    Secret(..),\n)");
    }

    #[test]
    fn equality_is_of_all_bytes() {
        let a = Secret::new([7; 32]);
        assert_eq!(a, a.duplicate());
        for i in 0..32 {
            let mut other = [7; 32];
            other[i] ^= 1;
            assert_ne!(a, Secret::new(other));
        }
    }

    #[test]
    fn random_secrets_differ() {
        assert_ne!(Secret::<32>::random(), Secret::<32>::random());
        assert_ne!(Secret::<32>::random().expose(), &[0; 32]);
    }
}
