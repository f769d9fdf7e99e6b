//! Operations that change the filesystem: each is one transaction, or a chain of them.

mod acl;
mod attributes;
mod core;
mod hint;
mod privileges;
mod replace;
mod shift;
mod space;
mod statfs;
mod times;
mod write;
mod xattr;
mod zero;

pub use attributes::{InodeUpdate, NewTime};
pub use core::InodeId;
pub use replace::StagedContent;
pub use statfs::FsUsage;
pub use times::times_after;
