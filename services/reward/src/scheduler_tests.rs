use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { vocab: 100, context: 200 };

fn scheduler(slots: usize, blocks: usize, chunk: usize) -> Scheduler {
    Scheduler::new(LIMITS, slots, blocks, chunk, Sharing::On(vec![]))
}

fn start(scheduler: &mut Scheduler, owner: &str) -> Result<(Key, Slot), Failure> {
    scheduler.open(owner, vec![], Instant::now())
}

/// A session whose prompt begins like no other.
fn opened(scheduler: &mut Scheduler, prompt: usize) -> Key {
    opened_by(scheduler, "ann", prompt)
}

fn opened_by(scheduler: &mut Scheduler, owner: &str, prompt: usize) -> Key {
    let (key, slot) = start(scheduler, owner).unwrap();
    let mut text = vec![1; prompt];
    text[0] = key as u32;
    scheduler.admit(key, slot, &text, Writes::One).unwrap();
    key
}

/// Admitted sessions, and blocks that they hold.
fn load(scheduler: &Scheduler) -> (usize, usize) {
    (scheduler.admitted(), scheduler.cache_stats().used)
}

/// Plans and reads: what each session read.
fn pass(scheduler: &mut Scheduler) -> Vec<(Key, usize, bool)> {
    let plan = scheduler.plan();
    plan.runs.iter().for_each(|run| scheduler.done(run));
    plan.runs.iter().map(|r| (r.key, r.len, r.last)).collect()
}

#[test]
fn a_long_prompt_is_read_in_chunks_beside_steps() {
    let mut s = scheduler(4, 64, 10);
    let short = opened(&mut s, 1);
    assert_eq!(pass(&mut s), [(short, 1, true)]);
    let long = opened(&mut s, 25);
    assert_eq!(pass(&mut s), [(long, 10, false)]);
    s.session(short).unwrap().advance(0, 5).unwrap();
    assert_eq!(pass(&mut s), [(short, 1, true), (long, 10, false)]);
    assert_eq!(pass(&mut s), [(long, 5, true)]);
    assert!(!s.demand().is_work());
}

#[test]
fn the_demand_tells_who_may_soon_be_in_a_pass() {
    let mut s = scheduler(4, 64, 10);
    let running = opened(&mut s, 1);
    pass(&mut s);
    assert_eq!(s.demand(), Demand { resting: 1, ..Demand::default() });
    let session = s.session(running).unwrap();
    session.candidates(0, vec![3]).unwrap();
    session.answered();
    assert_eq!(s.demand(), Demand { resting: 1, answered: 1, ..Demand::default() });
    s.session(running).unwrap().advance(0, 3).unwrap();
    let (_new, _slot) = start(&mut s, "bob").unwrap();
    assert_eq!(s.demand(), Demand { tokens: 1, encoding: 1, ..Demand::default() });
    pass(&mut s);
    // Whose profile is long in coming holds up no later pass.
    assert_eq!(s.demand(), Demand { resting: 1, ..Demand::default() });
    opened(&mut s, 7);
    assert_eq!(s.demand(), Demand { prompts: 1, resting: 1, ..Demand::default() });
}

#[test]
fn prompts_take_turns() {
    let mut s = scheduler(4, 64, 10);
    let (a, b) = (opened(&mut s, 30), opened(&mut s, 12));
    assert_eq!(pass(&mut s), [(a, 10, false)]);
    assert_eq!(pass(&mut s), [(b, 10, false)]);
    assert_eq!(pass(&mut s), [(a, 10, false)]);
    assert_eq!(pass(&mut s), [(b, 2, true), (a, 8, false)]);
    assert_eq!(pass(&mut s), [(a, 2, true)]);
}

#[test]
fn slots_are_held_from_open_to_the_end() {
    let mut s = scheduler(1, 64, 10);
    let (key, slot) = start(&mut s, "ann").unwrap();
    assert_eq!(start(&mut s, "ann").unwrap_err().reason, FailureReason::Exhausted);
    s.remove(key);
    assert!(start(&mut s, "ann").is_err(), "its prompt is still being encoded");
    drop(slot);
    let key = opened(&mut s, 3);
    assert_eq!(load(&s), (1, 1));
    s.remove(key);
    assert_eq!((load(&s), s.slots.free()), ((0, 0), 1));
}

#[test]
fn a_newcomer_without_room_is_refused_and_an_old_session_gets_room() {
    let mut s = scheduler(4, 4, 100);
    let old = opened(&mut s, 30);
    let young = opened(&mut s, 20);
    assert_eq!(load(&s), (2, 4));
    let (third, slot) = start(&mut s, "ann").unwrap();
    assert_eq!(s.admit(third, slot, &[1], Writes::One).unwrap_err().reason, FailureReason::Exhausted);
    s.remove(third);
    pass(&mut s);
    for step in 0..3 {
        s.session(old).unwrap().advance(step, 1).unwrap();
    }
    let plan = s.plan();
    assert_eq!((plan.preempted, plan.runs.len()), (vec![young], 1));
    assert_eq!(load(&s), (1, 3));
}

#[test]
fn the_context_is_what_the_blocks_hold() {
    let s = scheduler(4, 3, 100);
    assert_eq!(s.limits().context, 48);
}

#[test]
fn owners_take_turns_whatever_they_have_open() {
    let mut s = scheduler(8, 64, 10);
    let many: Vec<Key> = (0..3).map(|_| opened_by(&mut s, "many", 20)).collect();
    let one = opened_by(&mut s, "one", 25);
    let mut order = vec![];
    for _ in 0..5 {
        order.extend(pass(&mut s).into_iter().map(|(key, len, _)| (key, len)));
    }
    assert_eq!(order, [(many[0], 10), (one, 10), (many[1], 10), (one, 10), (many[2], 10)]);
    // A newcomer of an owner who was just served waits for the others.
    let late = opened_by(&mut s, "many", 10);
    assert_eq!(pass(&mut s).iter().map(|r| r.0).collect::<Vec<_>>(), [one, many[0]]);
    assert!(!pass(&mut s).iter().any(|r| r.0 == late));
}

#[test]
fn what_one_session_has_read_another_of_its_owner_need_not_read() {
    let mut s = scheduler(4, 64, 100);
    let prompt = [7; 40];
    let admit = |s: &mut Scheduler, owner: &str, writes| {
        let (key, slot) = start(s, owner).unwrap();
        s.admit(key, slot, &prompt, writes).unwrap();
        pass(s)[0].1
    };
    assert_eq!(admit(&mut s, "ann", Writes::One), 40);
    assert_eq!(admit(&mut s, "ann", Writes::One), 8);
    assert_eq!(admit(&mut s, "bob", Writes::One), 40);
    assert_eq!(admit(&mut s, "ann", Writes::Both), 40, "the reference has read nothing yet");
    let stats = s.cache_stats();
    assert_eq!((stats.asked_tokens, stats.hit_tokens, stats.used), (160, 32, 10));
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
        let mut s = scheduler(6, 8, chunk);
        let mut open: Vec<Key> = vec![];
        let mut read = BTreeMap::<Key, usize>::new();
        for event in events {
            match event {
                Event::Open(prompt) => {
                    let Ok((key, slot)) = start(&mut s, "ann") else { continue };
                    match s.admit(key, slot, &vec![1; prompt], Writes::One) {
                        Ok(_) => open.push(key),
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
                        // What others have read need not be read again.
                        prop_assert!(run.start >= *at);
                        *at = run.start + run.len;
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
            if !s.demand().is_work() { break }
            let plan = s.plan();
            open.retain(|key| !plan.preempted.contains(key));
            plan.runs.iter().for_each(|run| s.done(run));
        }
        prop_assert!(!s.demand().is_work());
        open.into_iter().for_each(|key| s.remove(key));
        prop_assert_eq!((load(&s), s.slots.free()), ((0, 0), 6));
    }
}
