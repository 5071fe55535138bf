//! Server-side apply: who owns which field of an object, and merging what an owner wants into what there is.
//!
//! Two pure functions of values. [`Write::track`] notes in `metadata.managedFields` what an ordinary write
//! changed; [`Write::apply`] merges a configuration, takes out what its manager no longer wants and nobody else
//! owns, and refuses what others own. Lists and maps branch as the schema says, so a kind needs nothing of its
//! own here. HTTP, options and storage are the API server's.
//!
//! Entries of other API versions are taken by path, without conversion: see ADR 004.

mod managers;
mod set;
#[cfg(test)]
mod tests;
mod walk;

use serde_json::Value;

use crate::{
    ApiError, Result, meta,
    schema::{Type, Types, decode},
};
use managers::{Manager, Operation};
use set::FieldSet;
use walk::{Comparison, Shape, Walker, of_type};

/// Owns what objects had before anybody's ownership was noted.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Metadata that the server or the URL settles; nobody owns it.
const UNOWNED: [&str; 9] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
];
/// Metadata that a status write can change.
const STATUS_METADATA: [&str; 3] = ["f:labels", "f:annotations", "f:finalizers"];

/// A write whose traces are to be kept.
#[derive(Clone)]
pub struct Write<'a> {
    pub types: &'a Types,
    pub schema: &'a Type,
    pub manager: &'a str,
    pub api_version: String,
    pub subresource: &'a str,
    /// The kind has a status of its own, which other writes leave alone.
    pub status: bool,
    /// RFC 3339.
    pub now: &'a str,
}

/// What others own, in their order and that of the paths.
struct Conflict {
    manager: String,
    path: String,
}

impl<'a> Write<'a> {
    fn walker(&self) -> Walker<'a> {
        Walker { types: self.types }
    }

    fn shape(&self) -> Shape<'a> {
        of_type(self.schema)
    }

    fn entry(&self, operation: Operation, fields: FieldSet) -> Manager {
        Manager {
            name: if self.manager.is_empty() { "unknown" } else { self.manager }.into(),
            operation,
            api_version: self.api_version.clone(),
            subresource: self.subresource.into(),
            time: Some(self.now.into()),
            fields,
        }
    }

    /// Notes what a create (`live` is `None`) or an update changes, in the new object's managedFields.
    pub fn track(&self, live: Option<&Value>, new: &mut Value) {
        let sent =
            meta::metadata_mut(new).remove("managedFields").filter(|_| live.is_some() && self.subresource.is_empty());
        let sent = sent.as_ref().and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        // One entry without content is how clients ask to forget all managers.
        if !sent.is_empty() && sent.iter().all(|entry| entry.as_object().is_some_and(|entry| entry.is_empty())) {
            return;
        }
        // Clients that know nothing of managers send none; those of the object stay.
        let sent = managers::decode(sent).filter(|sent| !sent.is_empty());
        let had = live.map(meta::managed_fields).unwrap_or_default();
        if live.is_some() && had.is_empty() && sent.is_none() {
            return;
        }
        let changes = match live {
            Some(live) => self.compare(live, new),
            None => self.compare(&self.walker().empty(self.schema), new),
        };
        if changes.is_empty() && sent.is_none() {
            meta::set(new, "managedFields", had.to_vec());
            return;
        }
        let mut managers = sent.or_else(|| managers::decode(had)).unwrap_or_default();
        self.update(&mut managers, changes);
        meta::set(new, "managedFields", managers::encode(managers));
    }

    /// Gives this write's manager what it changed, and takes that from everybody.
    fn update(&self, managers: &mut Vec<Manager>, changes: Comparison) {
        let taken = changes.added.union(&changes.modified);
        for manager in managers.iter_mut() {
            manager.fields = std::mem::take(&mut manager.fields).difference(&taken).difference(&changes.removed);
        }
        if taken.is_empty() {
            return;
        }
        let mine = self.entry(Operation::Update, taken);
        match managers.iter_mut().find(|manager| manager.is(&mine)) {
            Some(manager) => {
                *manager = Manager { fields: std::mem::take(&mut manager.fields).union(&mine.fields), ..mine }
            }
            None => managers.push(mine),
        }
    }

    /// The object that comes of a manager's configuration, its managedFields included. `live` is an object with
    /// nothing in it when there is none yet. Whoever forces takes what others own.
    pub fn apply(&self, live: &Value, config: &Value, force: bool) -> Result<Value> {
        if !meta::managed_fields(config).is_empty() {
            return Err(ApiError::bad_request("metadata.managedFields must be nil"));
        }
        match self.try_apply(live, config, force)? {
            Ok(new) => Ok(new),
            Err(conflicts) if self.manager == "kubectl" => self.upgrade(live, config, conflicts),
            Err(conflicts) => Err(conflict(&conflicts)),
        }
    }

    /// What kubectl applied in the client before it may apply here: conflicts about it do not count.
    fn upgrade(&self, live: &Value, config: &Value, mut conflicts: Vec<Conflict>) -> Result<Value> {
        let applied = meta::annotation(live, LAST_APPLIED).and_then(|text| serde_json::from_str::<Value>(text).ok());
        if let Some(mut applied) = applied {
            let ignore = decode::FieldValidation::Ignore;
            decode::check_applied(self.types, self.schema, &mut applied, ignore)?;
            let changed = self.compare(live, &applied);
            let applied = self.walker().fields(self.shape(), &applied, &mut Vec::new());
            let allowed = applied.difference(&changed.added).difference(&changed.modified);
            let allowed: Vec<_> = allowed.paths().iter().map(|path| set::display(path)).collect();
            conflicts.retain(|conflict| !allowed.contains(&conflict.path));
        }
        match conflicts.is_empty() {
            true => self.try_apply(live, config, true)?.map_err(|conflicts| conflict(&conflicts)),
            false => Err(conflict(&conflicts)),
        }
    }

    fn try_apply(&self, live: &Value, config: &Value, force: bool) -> Result<Result<Value, Vec<Conflict>>> {
        let walker = self.walker();
        let mut managers = managers::decode(meta::managed_fields(live)).unwrap_or_default();
        if managers.is_empty() && !meta::uid(live).is_empty() {
            let first = Write { manager: BEFORE_FIRST_APPLY, subresource: "", ..self.clone() };
            first.update(&mut managers, first.compare(&walker.empty(self.schema), live));
        }
        let mut problems = Vec::new();
        let wanted = self.scope(walker.fields(self.shape(), config, &mut problems));
        if let Some(problem) = problems.first() {
            return Err(self.untyped(config, problem));
        }
        let mine = self.entry(Operation::Apply, wanted);
        let last = managers.iter().position(|manager| manager.is(&mine)).map(|at| managers.remove(at).fields);
        let mut new = walker.merge(self.shape(), live, config);
        meta::metadata_mut(&mut new).remove("managedFields");
        if let Some(last) = last.filter(|last| !last.is_empty()) {
            self.prune(&mut new, &last, managers.iter().chain([&mine]));
        }
        let Comparison { added, modified, removed } = self.compare(live, &new);
        let taken = added.union(&modified);
        let conflicts: Vec<_> = managers.iter().flat_map(|manager| conflicts(manager, &taken)).collect();
        if !force && !conflicts.is_empty() {
            return Ok(Err(conflicts));
        }
        for manager in &mut managers {
            manager.fields = std::mem::take(&mut manager.fields).difference(&taken).difference(&removed);
        }
        managers.push(mine);
        meta::set(&mut new, "managedFields", managers::encode(managers));
        Ok(Ok(new))
    }

    /// Takes out what this manager applied last and nobody wants any more.
    fn prune<'m>(&self, merged: &mut Value, last: &FieldSet, managers: impl Iterator<Item = &'m Manager>) {
        let (walker, shape) = (self.walker(), self.shape());
        let fields = |value: &Value| walker.named(shape, &walker.fields(shape, value, &mut Vec::new()));
        let last = walker.named(shape, last);
        let mut pruned = merged.clone();
        walker.remove(shape, &mut pruned, &last);
        let owned = managers.fold(FieldSet::default(), |all, manager| all.union(&manager.fields));
        let all = fields(merged);
        // Others own something inside what was taken out: it comes back, and all around it.
        let keep = fields(&pruned).union(&walker.named(shape, &owned));
        let mut pruned = merged.clone();
        walker.remove(shape, &mut pruned, &all.clone().difference(&keep));
        // What lay inside and was nobody's comes back too, unless this manager had it.
        let gone = all.difference(&fields(&pruned)).intersection(&last);
        walker.remove(shape, merged, &gone);
    }

    fn compare(&self, old: &Value, new: &Value) -> Comparison {
        self.walker().compare(self.shape(), Some(old), Some(new)).map(|set| self.scope(set))
    }

    /// The part of a set that this write can change and own.
    fn scope(&self, mut set: FieldSet) -> FieldSet {
        set.member = false;
        let status = self.subresource == "status";
        set.children.retain(|element, child| match element.as_str() {
            "f:apiVersion" | "f:kind" => false,
            "f:metadata" => {
                child.member = false;
                child.children.retain(|element, _| match status {
                    true => STATUS_METADATA.contains(&element.as_str()),
                    false => !UNOWNED.contains(&element.trim_start_matches("f:")),
                });
                !child.children.is_empty()
            }
            "f:status" => status || !self.status,
            _ => !status,
        });
        set
    }

    fn untyped(&self, config: &Value, problem: &str) -> ApiError {
        let message = format!(
            "failed to create typed patch object ({}; {}, Kind={}): {problem}",
            meta::key(config),
            self.api_version,
            self.schema.short_name(),
        );
        ApiError::new(500, "", message)
    }

    /// Checks a configuration: unlike other bodies, it must not have fields that the kind does not know.
    pub fn check(&self, config: &mut Value) -> Result<()> {
        let unknown = decode::check_applied(self.types, self.schema, config, decode::FieldValidation::Warn)?;
        match unknown.iter().find_map(|text| text.strip_prefix("unknown field \"")) {
            Some(path) => {
                Err(self.untyped(config, &format!(".{}: field not declared in schema", path.trim_end_matches('"'))))
            }
            None => Ok(()),
        }
    }
}

/// When nothing but times of managers differs, a write changes nothing: `new` gets the old ones.
pub fn keep_times(old: &Value, new: &mut Value) {
    let (before, after) = (meta::managed_fields(old), meta::managed_fields(new));
    let alike = |a: &Value, b: &Value| {
        ["manager", "operation", "apiVersion", "subresource", "fieldsV1"].iter().all(|key| a[key] == b[key])
    };
    // In whatever order: it follows the times.
    if before == after || before.len() != after.len() || !after.iter().all(|a| before.iter().any(|b| alike(a, b))) {
        return;
    }
    let rest = |object: &Value| {
        let mut object = object.clone();
        meta::metadata_mut(&mut object).remove("managedFields");
        object
    };
    if rest(old) == rest(new) {
        meta::set(new, "managedFields", before.to_vec());
    }
}

fn conflicts(manager: &Manager, taken: &FieldSet) -> Vec<Conflict> {
    let set = manager.fields.intersection(taken);
    set.paths().iter().map(|path| Conflict { manager: manager.to_string(), path: set::display(path) }).collect()
}

fn conflict(conflicts: &[Conflict]) -> ApiError {
    let message = match conflicts {
        [one] => format!("Apply failed with 1 conflict: conflict with {}: {}", one.manager, one.path),
        _ => {
            let mut managers: Vec<&str> = conflicts.iter().map(|conflict| &*conflict.manager).collect();
            managers.sort_unstable();
            managers.dedup();
            let lines = managers.iter().map(|manager| {
                let paths = conflicts.iter().filter(|conflict| conflict.manager == *manager);
                let paths: Vec<_> = paths.map(|conflict| format!("- {}", conflict.path)).collect();
                format!("conflicts with {manager}:\n{}", paths.join("\n"))
            });
            format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.collect::<Vec<_>>().join("\n"))
        }
    };
    conflicts.iter().fold(ApiError::new(409, "Conflict", message), |error, conflict| {
        error.with_cause("FieldManagerConflict", format!("conflict with {}", conflict.manager), &conflict.path)
    })
}
