//! Owners as chown(1) has them: `OWNER[:[GROUP]]` or `:GROUP`, by name or number of this host.

use super::failure::{Failure, complain};
use super::quoting::quoted;

/// An owner, a group, or both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    /// As messages have them.
    pub(super) user: Option<String>,
    pub(super) group: Option<String>,
}

impl Owner {
    /// Of a file, by name where this host has one.
    pub(super) fn of(uid: u32, gid: u32) -> Self {
        Self {
            uid: Some(uid),
            gid: Some(gid),
            user: Some(user_name(uid)),
            group: Some(group_name(gid)),
        }
    }

    /// Parses it; names are looked up.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let colon = text.split_once(':');
        let failure = match Self::parts(text, colon) {
            Ok(owner) => return Ok(owner),
            Err(failure) => failure,
        };
        // The separator before POSIX had one.
        match (colon, text.split_once('.')) {
            (None, Some(dot)) => match Self::parts(text, Some(dot)) {
                Ok(owner) => {
                    complain(&format!(
                        "note: {}: give : and not .",
                        quoted(text.as_bytes())
                    ));
                    Ok(owner)
                }
                Err(_) => Err(failure),
            },
            _ => Err(failure),
        }
    }

    fn parts(text: &str, separated: Option<(&str, &str)>) -> Result<Self, Failure> {
        let (user, group) = match separated {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let invalid = |what: &str| {
            let text = quoted(text.as_bytes());
            Failure::usage(format!(
                "invalid {what} {text}: give names or numbers of this host, as in OWNER, OWNER:GROUP or :GROUP"
            ))
        };
        let mut owner = Self::default();
        if !user.is_empty() {
            let found = by_name(user, uzers::get_user_by_name);
            let login_group = found.as_ref().map(uzers::User::primary_group_id);
            let uid = found.map(|user| user.uid()).or_else(|| number(user));
            owner.uid = Some(uid.ok_or_else(|| invalid("user"))?);
            owner.user = Some(user.trim_start_matches('+').to_owned());
            if group == Some("") {
                // `OWNER:` is the group that the user logs in with.
                let gid = login_group.ok_or_else(|| invalid("owner"))?;
                owner.gid = Some(gid);
                owner.group = Some(group_name(gid));
            }
        }
        if let Some(group) = group.filter(|group| !group.is_empty()) {
            let found = by_name(group, uzers::get_group_by_name);
            let gid = found.map(|group| group.gid()).or_else(|| number(group));
            owner.gid = Some(gid.ok_or_else(|| invalid("group"))?);
            owner.group = Some(group.trim_start_matches('+').to_owned());
        }
        Ok(owner)
    }

    /// Whether a file has this owner and group, as far as they are given.
    pub(super) fn is_of(&self, uid: u32, gid: u32) -> bool {
        self.uid.is_none_or(|own| own == uid) && self.gid.is_none_or(|own| own == gid)
    }

    /// `user:group`, `user` or `:group`, as messages have it.
    pub(super) fn text(&self) -> String {
        match (&self.user, &self.group) {
            (Some(user), Some(group)) => format!("{user}:{group}"),
            (Some(one), None) | (None, Some(one)) => one.clone(),
            (None, None) => String::new(),
        }
    }
}

/// `+` before a number keeps it from being looked up as a name. A name has no NUL, which the lookup
/// would panic at.
fn by_name<T>(name: &str, look: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    let is_name = !name.starts_with('+') && !name.contains('\0');
    is_name.then(|| look(name)).flatten()
}

/// `u32::MAX` is no owner: chown(2).
fn number(text: &str) -> Option<u32> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    let number = digits.parse().ok()?;
    (!digits.starts_with('+') && number != u32::MAX).then_some(number)
}

fn user_name(uid: u32) -> String {
    let user = uzers::get_user_by_uid(uid);
    user.map_or_else(
        || uid.to_string(),
        |user| user.name().to_string_lossy().into(),
    )
}

fn group_name(gid: u32) -> String {
    let group = uzers::get_group_by_gid(gid);
    group.map_or_else(
        || gid.to_string(),
        |group| group.name().to_string_lossy().into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_names_or_numbers() {
        let ids = |text: &str| Owner::parse(text).map(|owner| (owner.uid, owner.gid)).ok();
        assert_eq!(ids("1000:+5"), Some((Some(1000), Some(5))));
        assert_eq!(ids(":5"), Some((None, Some(5))));
        assert_eq!(ids("7"), Some((Some(7), None)));
        assert_eq!(ids(""), Some((None, None)));
        assert_eq!(ids(":"), Some((None, None)));
        assert_eq!(ids("root:"), Some((Some(0), Some(0))));
        assert_eq!(ids("1.2"), Some((Some(1), Some(2))));
        for text in [
            "4294967295",
            "0x10",
            "1:2:3",
            "+1000:",
            "++1",
            "no such:x",
            "-1",
            "1:\0",
        ] {
            assert_eq!(ids(text), None, "{text}");
        }
    }
}
