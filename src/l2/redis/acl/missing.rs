//! The permissions that a user lacks, and their description with the rules that grant them.

/// The permissions that a user lacks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct MissingPermissions {
    commands: Vec<String>,
    keys: bool,
    pub(super) channels: bool,
    /// Denied for another reason, in the server's words.
    other: Option<String>,
}

impl MissingPermissions {
    /// Notes the denial in an answer to `command`. Its text depends on the version of Redis.
    pub(super) fn note(&mut self, command: &str, details: &str) {
        let named = details.split_once("run the '").and_then(|(_, rest)| {
            let (name, _) = rest.split_once('\'')?;
            Some(name.to_ascii_lowercase())
        });
        if let Some(name) = named {
            self.note_command(&name);
        } else if details.contains("run this command") {
            self.note_command(&command.to_ascii_lowercase());
        } else if details.contains("channel") {
            self.channels = true;
        } else if details.contains("key") {
            self.keys = true;
        } else {
            self.other.get_or_insert_with(|| details.to_owned());
        }
    }

    pub(super) fn note_command(&mut self, name: &str) {
        if !self.commands.iter().any(|known| known == name) {
            self.commands.push(name.to_owned());
        }
    }

    /// Describes what is missing, and the rules that grant it. `None`: nothing is missing.
    pub(super) fn describe(&self, user: &str, prefix: &str) -> Option<String> {
        if *self == Self::default() {
            return None;
        }
        if let (Some(other), false) = (&self.other, self.has_rules()) {
            return Some(other.clone());
        }
        let (mut may_not, mut rules) = (Vec::new(), Vec::new());
        if !self.commands.is_empty() {
            let names: Vec<_> = self
                .commands
                .iter()
                .map(|name| name.to_uppercase())
                .collect();
            may_not.push(format!("run {}", names.join(", ")));
            rules.extend(self.commands.iter().map(|name| format!("+{name}")));
        }
        if self.keys {
            may_not.push(format!("use the keys {prefix}:*"));
            rules.push(format!("~{prefix}:*"));
        }
        if self.channels {
            may_not.push(format!("use the channels {prefix}:*"));
            rules.push(format!("&{prefix}:*"));
        }
        let (may_not, rules) = (may_not.join(", nor "), rules.join(" "));
        Some(format!(
            "the user {user} may not {may_not}: ACL SETUSER {user} {rules}"
        ))
    }

    fn has_rules(&self) -> bool {
        !self.commands.is_empty() || self.keys || self.channels
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l2::redis::errors::is_denial;

    fn described(answers: &[(&str, &str)]) -> Option<String> {
        let mut missing = MissingPermissions::default();
        for (command, details) in answers {
            assert!(is_denial(details), "{details}");
            missing.note(command, details);
        }
        missing.describe("app", "tidegate")
    }

    /// With the texts of the servers from 6.0 to 8.0.
    #[test]
    fn what_is_denied_is_told_with_the_rules_that_grant_it() {
        let set = Some("the user app may not run SET: ACL SETUSER app +set".to_owned());
        for details in [
            "NOPERM this user has no permissions to run the 'set' command or its subcommand",
            "NOPERM User app has no permissions to run the 'set' command",
            "NOPERM The user executing the script can't run this command or subcommand",
            "ERR The user executing the script can't run this command or subcommand",
            "ERR ACL failure in script: User app has no permissions to run the 'set' command",
        ] {
            assert_eq!(described(&[("SET", details)]), set, "{details}");
        }
        let keys = "the user app may not use the keys tidegate:*: ACL SETUSER app ~tidegate:*";
        let channels =
            "the user app may not use the channels tidegate:*: ACL SETUSER app &tidegate:*";
        for (details, expected) in [
            (
                "NOPERM this user has no permissions to access one of the keys used as arguments",
                keys,
            ),
            ("NOPERM No permissions to access a key", keys),
            (
                "NOPERM this user has no permissions to access one of the channels used as arguments",
                channels,
            ),
            (
                "ERR ACL failure in script: No permissions to access a channel",
                channels,
            ),
        ] {
            assert_eq!(
                described(&[("EVAL", details)]).as_deref(),
                Some(expected),
                "{details}"
            );
        }
        let both = "NOPERM User app has no permissions to run the 'cluster|info' command";
        assert_eq!(
            described(&[
                ("", both),
                ("SET", "NOPERM No permissions to access a key"),
                ("", both)
            ])
            .as_deref(),
            Some(
                "the user app may not run CLUSTER|INFO, nor use the keys tidegate:*: \
                 ACL SETUSER app +cluster|info ~tidegate:*"
            )
        );
        assert_eq!(described(&[]), None);
        assert!(!is_denial(
            "READONLY You can't write against a read only replica."
        ));
        assert!(!is_denial("ERR unknown command 'EVAL'"));
    }
}
