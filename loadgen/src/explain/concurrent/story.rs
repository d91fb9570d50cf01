//! What is told of a server that works on many requests at once.

use super::{Load, bounds::cpu_ms};
use crate::{
    explain::{Evidence, sentences::not_crossed, words},
    ledger::Stage,
    report::model::ThreadGroup,
};

pub(super) fn cpu_cause(evidence: &Evidence<'_>, load: &Load<'_>) -> String {
    let ms = cpu_ms(evidence, load).map_or_else(String::new, |ms| {
        format!(" A request takes {} of processor time.", words::ms(ms))
    });
    let cores = words::several(load.cores(), "processor", "processors");
    let kept = words::percent(load.contention());
    if load.sum(&["runqueue"]) > load.cores() {
        return format!(
            "Processor time is used up, and by others on this host as well: the service got {cores} \
             on average, and its threads that wanted one spent {kept} of their time kept from \
             running.{ms}"
        );
    }
    format!(
        "Processor time is used up: {cores} in use on average, and threads that want one spend \
         {kept} of their time kept from running.{ms}"
    )
}

pub(super) fn shape_sentence(evidence: &Evidence<'_>, load: &Load<'_>) -> String {
    let in_progress = words::several(evidence.stats.in_service_mean, "request", "requests");
    let threads = load.reading.threads;
    if load.serving.multiplexes() {
        // Loops that are replaced now and then make no whole number.
        let loops = if (threads - threads.round()).abs() < 0.005 {
            words::several(threads.max(1.0), "event loop takes", "event loops take")
        } else {
            format!("Event loops, {} at once on average, take", words::mean(threads))
        };
        return format!(
            "{loops} every connection as it comes and {} on many requests at once: {in_progress} in \
             progress on average.",
            if loops.ends_with("takes") { "works" } else { "work" },
        );
    }
    let alive = if load.serving.lasting {
        String::new()
    } else {
        format!("{} of them alive at once on average and ", words::mean(threads))
    };
    let each = if load.serving.threads == 1 { "and never had" } else { "none with" };
    format!(
        "{} read the requests of the hold, {alive}{each} two in hand at once: {in_progress} in progress \
         on average.",
        words::several(load.serving.threads as f64, "thread", "threads"),
    )
}

pub(super) fn loop_sentence(load: &Load<'_>) -> String {
    let whose = match (load.serving.multiplexes(), load.serving.threads) {
        (true, _) => "The event loop's",
        (false, 1) => "Its",
        (false, _) => "Their",
    };
    format!("{whose} time: {}.", words::list(&parts(load.reading)))
}

pub(super) fn executor_sentence(load: &Load<'_>) -> Option<String> {
    let executors = load.executors?;
    Some(format!(
        "{}, {} at once on average; their time: {}.",
        if load.serving.multiplexes() {
            "It hands database work to other threads"
        } else {
            "Other threads talk to the database"
        },
        words::mean(executors.threads),
        words::list(&parts(executors)),
    ))
}

/// What threads did, most first, without the crumbs.
fn parts(group: &ThreadGroup) -> Vec<String> {
    let mut classes: Vec<(&String, &f64)> = group.time.iter().collect();
    classes.sort_by(|a, b| b.1.total_cmp(a.1));
    classes
        .into_iter()
        .filter(|(_, share)| **share >= 0.02)
        .map(|(class, share)| format!("{} {}", words::percent(*share), words::doing(class)))
        .collect()
}

pub(super) fn overlap_sentence(evidence: &Evidence<'_>) -> Option<String> {
    evidence.kernel().db_round_trips_per_request.filter(|&count| count > 0.0)?;
    let open = words::several(evidence.kernel().db_open_mean, "was open", "were open");
    let overlap = format!("Of these round trips {open} at once on average: their waits overlap");
    Some(match evidence.database_delay_ms().filter(|&ms| ms > 0.0) {
        Some(longer) => format!(
            "{overlap}, so {} of delay makes each request about {} longer while the others go on.",
            words::ms(evidence.delay_ms),
            words::ms(longer),
        ),
        None => not_crossed(evidence)
            .map_or_else(|| format!("{overlap}."), |not| format!("{overlap}. {not}")),
    })
}

pub(super) fn queue_sentence(evidence: &Evidence<'_>) -> Option<String> {
    let depth = evidence.queue_mean();
    let accept = evidence.stage_ms(Stage::AcceptQueue);
    let unread = evidence.stage_ms(Stage::Unread);
    let service = evidence.stage_ms(Stage::Service);
    if evidence.ledger.stages.is_empty() {
        return None;
    }
    Some(format!(
        "Users wait inside the process, not in front of it: {} in the accept queue ({} per \
         request), {} until the request was read, then {} until it was answered.",
        words::mean(depth),
        words::ms(accept),
        words::ms(unread),
        words::ms(service),
    ))
    .filter(|_| service >= accept + unread)
    .or_else(|| {
        Some(format!(
            "Requests wait before anybody looks at them: {} in the accept queue ({} connections on \
             average) and {} unread, against {} of work.",
            words::ms(accept),
            words::mean(depth),
            words::ms(unread),
            words::ms(service),
        ))
    })
}
