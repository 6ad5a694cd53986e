use attune_engine::kv::BLOCK_SIZE;

use super::*;

fn scheduler(slots: usize, chunk: usize, blocks: usize) -> Scheduler {
    Scheduler::new(Limits { slots, prefill_chunk: chunk }, blocks, Sharing::On(vec![]))
}

/// A text of `n` tokens that begins like no other of another `id`.
fn text(id: SequenceId, n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| id as u32 * 1000 + i).collect()
}

fn submit(s: &mut Scheduler, id: SequenceId, owner: &str, n: usize) {
    s.submit(id, owner, text(id, n));
}

/// Runs a plan and chooses a token for whoever it completes.
fn run(s: &mut Scheduler) -> Plan {
    let plan = s.plan();
    for rows in &plan.rows {
        s.advance(rows.id, rows.count);
        if rows.complete {
            s.push(rows.id, 7);
        }
    }
    plan
}

/// The rows of a plan: who, from where, how many.
fn rows(plan: &Plan) -> Vec<(SequenceId, usize, usize)> {
    plan.rows.iter().map(|r| (r.id, r.start, r.count)).collect()
}

#[test]
fn a_long_prompt_is_chunked_and_others_decode_beside_it() {
    let mut s = scheduler(4, 8, 64);
    submit(&mut s, 1, "a", 3);
    assert_eq!(s.admit(), [1]);
    run(&mut s);
    submit(&mut s, 2, "a", 20);
    s.admit();
    for (start, count) in [(0, 8), (8, 8), (16, 4)] {
        let plan = run(&mut s);
        assert_eq!(plan.rows.len(), 2, "the decoding sequence has a row in every iteration");
        assert_eq!((plan.rows[1].start, plan.rows[1].count), (start, count));
        assert_eq!(plan.rows[1].complete, start == 16);
    }
}

#[test]
fn owners_take_turns() {
    let mut s = scheduler(3, 64, 64);
    for id in 1..=3 {
        submit(&mut s, id, "many", 2);
    }
    submit(&mut s, 4, "one", 2);
    assert_eq!(s.admit(), [1, 4, 2]);
}

#[test]
fn owners_take_turns_at_their_prompts() {
    let mut s = scheduler(8, 10, 64);
    for (id, owner) in [(1, "many"), (2, "many"), (3, "one"), (4, "many")] {
        submit(&mut s, id, owner, 25);
    }
    s.admit();
    let mut order = vec![];
    for _ in 0..5 {
        order.extend(rows(&run(&mut s)).into_iter().filter(|r| r.2 > 1).map(|(id, _, n)| (id, n)));
    }
    // The one prompt is read after five passes, though many were before it.
    assert_eq!(order, [(1, 10), (3, 10), (1, 10), (3, 10), (1, 5), (3, 5)]);
}

#[test]
fn the_youngest_gives_way_and_comes_back_first() {
    // Blocks for two sequences of one block and a bit.
    let mut s = scheduler(4, 64, 3);
    submit(&mut s, 1, "a", BLOCK_SIZE - 1);
    submit(&mut s, 2, "a", BLOCK_SIZE - 1);
    submit(&mut s, 3, "a", 2 * BLOCK_SIZE);
    assert_eq!(s.admit(), [1, 2]);
    let preempted: Vec<_> = (0..2 * BLOCK_SIZE).flat_map(|_| run(&mut s).preempted).collect();
    assert_eq!(preempted, [2]);
    s.remove(1);
    assert_eq!(s.admit(), [2], "before the one that has never run");
}

#[test]
fn who_was_preempted_finds_what_it_had_computed() {
    let mut s = scheduler(4, 64, 6);
    submit(&mut s, 1, "a", BLOCK_SIZE);
    submit(&mut s, 2, "a", 3 * BLOCK_SIZE);
    assert_eq!(s.admit(), [1, 2]);
    let preempted: Vec<_> = (0..BLOCK_SIZE + 2).flat_map(|_| run(&mut s).preempted).collect();
    assert_eq!(preempted, [2]);
    s.remove(1);
    assert_eq!(s.admit(), [2]);
    assert_eq!(s.found(2), 3 * BLOCK_SIZE, "its fourth block went to the first");
    assert_eq!(rows(&run(&mut s))[0].1, 3 * BLOCK_SIZE);
}

#[test]
fn a_conversation_goes_on_where_it_was_and_only_for_its_owner() {
    let mut s = scheduler(4, 64, 64);
    submit(&mut s, 1, "a", 20);
    s.admit();
    let mut said = text(1, 20);
    (0..30).for_each(|_| drop(run(&mut s)));
    s.remove(1);
    said.extend([7; 30]);
    said.extend([5; 10]);
    s.submit(2, "a", said.clone());
    s.submit(3, "b", said);
    s.admit();
    // 49 tokens were in the cache: the last chosen one never was.
    assert_eq!(rows(&run(&mut s)), [(3, 0, 60), (2, 48, 4)], "the other owner is first");
    assert_eq!((s.found(2), s.found(3)), (48, 0));
}

#[test]
fn those_who_come_together_compute_their_common_beginning_once() {
    let mut s = scheduler(8, 40, 64);
    let system = text(9, 5 * BLOCK_SIZE);
    for id in 1..=4 {
        s.submit(id, "a", [&system[..], &[id as u32]].concat());
    }
    s.admit();
    let mut computed = 0;
    while s.running.iter().any(|r| r.cached < 81) {
        computed += run(&mut s).rows.iter().map(|r| r.count).sum::<usize>();
    }
    assert_eq!(computed, 81 + 3, "the others computed their last token alone");
    assert_eq!(s.load().cache.used, 5 + 4);
}

#[test]
fn a_pass_is_no_longer_than_the_chunk_whatever_was_found() {
    let mut s = scheduler(4, 16, 64);
    submit(&mut s, 1, "a", 100);
    s.admit();
    while s.running[0].work() > 0 {
        let plan = s.plan();
        assert!(plan.rows.iter().map(|r| r.count).sum::<usize>() <= 16);
        plan.rows.iter().for_each(|r| s.advance(r.id, r.count));
    }
    s.remove(1);
    submit(&mut s, 2, "a", 3);
    s.submit(3, "a", text(1, 97));
    s.admit();
    assert_eq!(rows(&s.plan()), [(3, 96, 1), (2, 0, 3)], "what is left is one row");
}

#[test]
fn what_is_removed_leaves_nothing_behind() {
    let mut s = scheduler(1, 64, 8);
    submit(&mut s, 1, "a", 5);
    submit(&mut s, 2, "b", 5);
    s.admit();
    s.remove(1);
    s.remove(2);
    let load = s.load();
    assert_eq!((load.running, load.waiting, load.cache.used, load.cache.total), (0, 0, 0, 8));
    assert!(!s.has_work() && !s.can_admit());
}
