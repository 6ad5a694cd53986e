use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { vocab: 100, context: 200 };

fn opened(scheduler: &mut Scheduler, prompt: usize) -> Key {
    let (key, slot) = scheduler.open(vec![]).unwrap();
    scheduler.admit(key, slot, &vec![1; prompt]).unwrap();
    key
}

/// Plans and reads: what each session read.
fn pass(scheduler: &mut Scheduler) -> Vec<(Key, usize, bool)> {
    let plan = scheduler.plan();
    plan.runs.iter().for_each(|run| scheduler.done(run));
    plan.runs.iter().map(|r| (r.key, r.len, r.last)).collect()
}

#[test]
fn a_long_prompt_is_read_in_chunks_beside_steps() {
    let mut s = Scheduler::new(LIMITS, 4, 64, 10);
    let short = opened(&mut s, 1);
    assert_eq!(pass(&mut s), [(short, 1, true)]);
    let long = opened(&mut s, 25);
    assert_eq!(pass(&mut s), [(long, 10, false)]);
    s.session(short).unwrap().advance(0, 5).unwrap();
    assert_eq!(pass(&mut s), [(short, 1, true), (long, 10, false)]);
    assert_eq!(pass(&mut s), [(long, 5, true)]);
    assert!(!s.has_work());
}

#[test]
fn prompts_take_turns() {
    let mut s = Scheduler::new(LIMITS, 4, 64, 10);
    let (a, b) = (opened(&mut s, 30), opened(&mut s, 12));
    assert_eq!(pass(&mut s), [(a, 10, false)]);
    assert_eq!(pass(&mut s), [(b, 10, false)]);
    assert_eq!(pass(&mut s), [(a, 10, false)]);
    assert_eq!(pass(&mut s), [(b, 2, true), (a, 8, false)]);
    assert_eq!(pass(&mut s), [(a, 2, true)]);
}

#[test]
fn slots_are_held_from_open_to_the_end() {
    let mut s = Scheduler::new(LIMITS, 1, 64, 10);
    let (key, slot) = s.open(vec![]).unwrap();
    assert_eq!(s.open(vec![]).unwrap_err().reason, FailureReason::Exhausted);
    s.remove(key);
    assert!(s.open(vec![]).is_err(), "its prompt is still being encoded");
    drop(slot);
    let key = opened(&mut s, 3);
    assert_eq!(s.load(), (1, 1));
    s.remove(key);
    assert_eq!((s.load(), s.slots.free()), ((0, 0), 1));
}

#[test]
fn a_newcomer_without_room_is_refused_and_an_old_session_gets_room() {
    let mut s = Scheduler::new(LIMITS, 4, 4, 100);
    let old = opened(&mut s, 30);
    let young = opened(&mut s, 20);
    assert_eq!(s.load(), (2, 4));
    let (third, slot) = s.open(vec![]).unwrap();
    assert_eq!(s.admit(third, slot, &[1]).unwrap_err().reason, FailureReason::Exhausted);
    s.remove(third);
    pass(&mut s);
    for step in 0..3 {
        s.session(old).unwrap().advance(step, 1).unwrap();
    }
    let plan = s.plan();
    assert_eq!((plan.preempted, plan.runs.len()), (vec![young], 1));
    assert_eq!(s.load(), (1, 3));
}

#[test]
fn the_context_is_what_the_blocks_hold() {
    let s = Scheduler::new(LIMITS, 4, 3, 100);
    assert_eq!(s.limits().context, 48);
}

#[derive(Debug, Clone)]
enum Event {
    Open(usize),
    Advance(usize),
    Close(usize),
    Pass,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (1usize..60).prop_map(Event::Open),
        6 => (0usize..6).prop_map(Event::Advance),
        1 => (0usize..6).prop_map(Event::Close),
        3 => Just(Event::Pass),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_reads_are_in_order_and_blocks_come_back(
        events in prop::collection::vec(event(), 0..120),
        chunk in 1usize..40,
    ) {
        let mut s = Scheduler::new(LIMITS, 6, 8, chunk);
        let mut open: Vec<Key> = vec![];
        let mut read = BTreeMap::<Key, usize>::new();
        for event in events {
            match event {
                Event::Open(prompt) => {
                    let Ok((key, slot)) = s.open(vec![]) else { continue };
                    match s.admit(key, slot, &vec![1; prompt]) {
                        Ok(()) => open.push(key),
                        Err(_) => s.remove(key),
                    }
                }
                Event::Advance(i) => {
                    if let Some(session) = open.get(i).and_then(|&key| s.session(key)) {
                        let step = session.step() as u32;
                        let _ = session.advance(step, 1);
                    }
                }
                Event::Close(i) => if i < open.len() { s.remove(open.remove(i)); },
                Event::Pass => {
                    let plan = s.plan();
                    open.retain(|key| !plan.preempted.contains(key));
                    let prefill: usize = plan.runs.iter().map(|r| r.len).filter(|&l| l > 1).sum();
                    prop_assert!(prefill <= chunk);
                    let oldest = open.first().copied();
                    prop_assert!(!plan.preempted.iter().any(|k| oldest.is_some_and(|o| *k < o)));
                    for run in &plan.runs {
                        let at = read.entry(run.key).or_default();
                        prop_assert_eq!(run.start, *at);
                        *at += run.len;
                        let (tokens, blocks) = s.rows(run).unwrap();
                        prop_assert_eq!(tokens.len(), run.len);
                        prop_assert!(blocks.len() * BLOCK_SIZE >= run.start + run.len);
                    }
                    plan.runs.iter().for_each(|run| s.done(run));
                }
            }
        }
        // Nothing stays unread for ever, and nothing stays held.
        for _ in 0..1000 {
            if !s.has_work() { break }
            let plan = s.plan();
            open.retain(|key| !plan.preempted.contains(key));
            plan.runs.iter().for_each(|run| s.done(run));
        }
        prop_assert!(!s.has_work());
        open.into_iter().for_each(|key| s.remove(key));
        prop_assert_eq!((s.load(), s.slots.free()), ((0, 0), 6));
    }
}
