//! POSIX access control lists as text, as getfacl(1) prints them with numbers for owners.

use std::fmt::Write;

use xtent::volume::Metadata;

/// Entry tags of the system calls' form (`linux/posix_acl.h`).
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

const VERSION: u32 = 2;

struct AclEntry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// The entries of a value of `system.posix_acl_access` or `_default`; `None` for one that is no
/// list.
fn entries(value: &[u8]) -> Option<Vec<AclEntry>> {
    let (version, entries) = value.split_first_chunk()?;
    if u32::from_le_bytes(*version) != VERSION || !entries.len().is_multiple_of(8) {
        return None;
    }
    let entry = |bytes: &[u8]| {
        let half = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        Some(AclEntry {
            tag: half(0)?,
            permissions: half(2)?,
            id: u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?),
        })
    };
    entries.chunks_exact(8).map(entry).collect()
}

fn rwx(permissions: u16) -> String {
    [(4, 'r'), (2, 'w'), (1, 'x')]
        .map(|(bit, letter)| if permissions & bit == 0 { '-' } else { letter })
        .iter()
        .collect()
}

/// The lines of a list; where the mask takes rights away, the effective rights follow.
fn lines(entries: &[AclEntry], prefix: &str, text: &mut String) {
    let mask = entries.iter().find(|entry| entry.tag == MASK);
    for entry in entries {
        let (name, id) = match entry.tag {
            USER_OBJ => ("user", String::new()),
            USER => ("user", entry.id.to_string()),
            GROUP_OBJ => ("group", String::new()),
            GROUP => ("group", entry.id.to_string()),
            MASK => ("mask", String::new()),
            OTHER => ("other", String::new()),
            _ => continue,
        };
        let line = format!("{prefix}{name}:{id}:{}", rwx(entry.permissions));
        let masked = matches!(entry.tag, USER | GROUP_OBJ | GROUP);
        let left = mask.map_or(entry.permissions, |mask| {
            entry.permissions & mask.permissions
        });
        text.push_str(&line);
        if masked && left != entry.permissions {
            let _ = write!(text, "\t#effective:{}", rwx(left));
        }
        text.push('\n');
    }
}

/// A list in one line, with numbers for owners, as tar archives have it; `None` for one that is no
/// list.
pub(super) fn short_text(value: &[u8]) -> Option<String> {
    let mut entries = entries(value)?;
    // Without a mask nothing is taken away: the text is then that of the entries alone.
    let mask = entries.extract_if(.., |entry| entry.tag == MASK).next();
    let mut text = String::new();
    lines(&entries, "", &mut text);
    if let Some(mask) = mask {
        lines(&[mask], "", &mut text);
    }
    Some(text.trim_end().replace('\n', ","))
}

/// What getfacl prints of a file below its name. Without an access list that is what its mode says.
pub(super) fn text(
    metadata: &Metadata,
    access: Option<&[u8]>,
    default: Option<&[u8]>,
) -> Option<String> {
    let mut text = format!("# owner: {}\n# group: {}\n", metadata.uid, metadata.gid);
    let special = [(0o4000, 's'), (0o2000, 's'), (0o1000, 't')].map(|(bit, letter)| {
        if metadata.mode & bit == 0 {
            '-'
        } else {
            letter
        }
    });
    if special != ['-'; 3] {
        let _ = writeln!(text, "# flags: {}", special.iter().collect::<String>());
    }
    let mode = |shift: u32| u16::try_from(metadata.mode >> shift & 7).unwrap_or(0);
    let of_mode = |tag, shift| AclEntry {
        tag,
        permissions: mode(shift),
        id: u32::MAX,
    };
    let access = match access {
        Some(value) => entries(value)?,
        None => vec![
            of_mode(USER_OBJ, 6),
            of_mode(GROUP_OBJ, 3),
            of_mode(OTHER, 0),
        ],
    };
    lines(&access, "", &mut text);
    if let Some(value) = default {
        lines(&entries(value)?, "default:", &mut text);
    }
    Some(text)
}
