use proptest::prelude::*;

use super::*;

const READER: Reader<'static> = Reader { owner: "ann", writes: Writes::One };

/// `n` blocks of tokens and `more` tokens, all from `first` on.
fn tokens(first: u32, n: usize, more: usize) -> Vec<u32> {
    (first..).take(n * BLOCK_SIZE + more).collect()
}

fn sharing() -> BlockPool {
    BlockPool::new(8, Sharing::On(vec![]))
}

/// A sequence that is computed to its end.
fn computed(pool: &BlockPool, reader: Reader<'_>, tokens: &[u32]) -> BlockTable {
    let mut table = pool.open(reader, tokens, tokens.len() + 1).unwrap();
    table.keep(tokens);
    table
}

#[test]
fn blocks_come_back_when_dropped() {
    let pool = BlockPool::new(4, Sharing::Off);
    let prompt = tokens(0, 2, 1);
    let mut table = pool.open(READER, &prompt, 48).unwrap();
    assert_eq!(table.ids(), [0, 1, 2]);
    assert!(pool.open(READER, &prompt, 32).is_none() && !table.grow(65) && table.grow(64));
    table.keep(&prompt);
    assert_eq!((table.kept(), pool.stats().used), (0, 4));
    drop(table);
    assert_eq!((pool.stats().used, pool.stats().kept), (0, 0));
}

#[test]
fn the_same_tokens_are_computed_once() {
    let pool = sharing();
    let prompt = tokens(0, 2, 3);
    let first = computed(&pool, READER, &prompt);
    let second = pool.open(READER, &prompt, 36).unwrap();
    assert_eq!((second.kept(), &second.ids()[..2]), (32, &first.ids()[..2]));
    assert_ne!(second.ids()[2], first.ids()[2], "a block that is not full is written by one alone");
    drop((first, second));
    let stats = pool.stats();
    assert_eq!((stats.used, stats.kept, stats.asked_tokens, stats.hit_tokens), (0, 2, 70, 32));
    // The same beginning, and then another text.
    let other = [&prompt[..BLOCK_SIZE], &tokens(500, 1, 0)].concat();
    assert_eq!(pool.open(READER, &other, 32).unwrap().kept(), BLOCK_SIZE);
    // The same block behind another one is another context.
    let moved = [&tokens(900, 1, 0)[..], &prompt[BLOCK_SIZE..]].concat();
    assert_eq!(pool.open(READER, &moved, 36).unwrap().kept(), 0);
}

#[test]
fn the_last_token_is_always_computed() {
    let pool = sharing();
    drop(computed(&pool, READER, &tokens(0, 3, 0)));
    assert_eq!(pool.open(READER, &tokens(0, 2, 0), 32).unwrap().kept(), BLOCK_SIZE);
    assert_eq!(pool.open(READER, &tokens(0, 2, 1), 33).unwrap().kept(), 2 * BLOCK_SIZE);
}

#[test]
fn an_owners_blocks_are_found_by_that_owner_alone() {
    let pool = sharing();
    let prompt = tokens(0, 2, 1);
    drop(computed(&pool, READER, &prompt));
    let kept = |owner, writes| pool.open(Reader { owner, writes }, &prompt, 33).unwrap().kept();
    assert_eq!(kept("bob", Writes::One), 0);
    assert_eq!(kept("ann", Writes::Both), 0, "the reference has not read these tokens");
    assert_eq!(kept("ann", Writes::One), 32);
}

#[test]
fn configured_text_is_found_by_all_and_what_follows_by_its_owner() {
    // The operator's text ends in the middle of the third block.
    let pool = BlockPool::new(16, Sharing::On(vec![tokens(700, 1, 0), tokens(0, 2, 7)]));
    let prompt = tokens(0, 4, 1);
    drop(computed(&pool, READER, &prompt));
    let kept =
        |owner, tokens: &[u32]| pool.open(Reader { owner, ..READER }, tokens, tokens.len()).unwrap().kept();
    assert_eq!((kept("bob", &prompt), kept("ann", &prompt)), (32, 64));
    // Who wrote it does not matter, nor that the prompt leaves the operator's text early.
    let short = [&prompt[..BLOCK_SIZE], &tokens(300, 1, 1)].concat();
    drop(computed(&pool, Reader { owner: "bob", ..READER }, &short));
    assert_eq!((kept("cem", &short), kept("bob", &short)), (16, 32));
}

#[test]
fn the_longest_unused_goes_first_and_only_when_blocks_run_out() {
    let pool = sharing();
    let (a, b) = (tokens(0, 3, 0), tokens(100, 3, 0));
    drop(computed(&pool, READER, &a));
    drop(computed(&pool, READER, &b));
    assert_eq!((pool.stats().used, pool.stats().kept), (0, 6));
    let kept = |tokens: &[u32]| pool.open(READER, tokens, tokens.len()).unwrap().kept();
    assert_eq!(kept(&a), 32, "it was used last now");
    let big = pool.open(READER, &tokens(500, 5, 0), 80).unwrap();
    assert_eq!(pool.stats().kept, 3, "two were free");
    drop(big);
    assert_eq!((kept(&b), kept(&a)), (16, 32), "the end of a text goes before its beginning");
    // What is held is never taken.
    let held = computed(&pool, READER, &a);
    assert!(pool.open(READER, &tokens(500, 6, 0), 96).is_none());
    assert!(!pool.fits(READER, &tokens(500, 6, 0), 96) && pool.fits(READER, &a, 48));
    drop(held);
}

#[test]
fn two_that_compute_the_same_at_once_end_with_one_block() {
    let pool = sharing();
    let prompt = tokens(0, 3, 1);
    let mut first = pool.open(READER, &prompt, 49).unwrap();
    let mut second = pool.open(READER, &prompt, 49).unwrap();
    assert_eq!(pool.stats().used, 8);
    first.keep(&prompt[..20]);
    assert_eq!(second.adopt(&prompt), BLOCK_SIZE, "what the other has finished need not be computed");
    first.keep(&prompt);
    second.keep(&prompt[..40]);
    assert_eq!(first.ids()[..2], second.ids()[..2]);
    assert_ne!(first.ids()[2], second.ids()[2]);
    assert_eq!((pool.stats().used, pool.stats().hit_tokens), (6, 16));
    assert_eq!(second.adopt(&prompt), 48);
    assert_eq!(pool.stats().used, 5);
    drop(first);
    assert_eq!(pool.stats().used, 4);
}

// === A naive cache, and memory that knows what was written to it ===

const OWNERS: [&str; 3] = ["ann", "bob", "cem"];
const BLOCKS: usize = 12;

/// What a block holds: all tokens up to its end, and what they were written for.
type Content = (Vec<u32>, Writes, &'static str);

/// A kept block of the naive cache.
#[derive(Debug)]
struct Naive {
    text: Vec<u32>,
    writes: Writes,
    owner: Option<&'static str>,
    holders: usize,
    released: usize,
}

struct Held {
    reader: Reader<'static>,
    /// Leading blocks of configured text, as it was opened.
    public: usize,
    tokens: Vec<u32>,
    computed: usize,
    table: BlockTable,
}

struct World {
    pool: BlockPool,
    configured: Vec<Vec<u32>>,
    memory: Vec<Option<Content>>,
    naive: Vec<Naive>,
    held: Vec<Held>,
    now: usize,
}

#[derive(Debug, Clone)]
enum Event {
    Open { owner: usize, both: bool, texts: Vec<u8>, more: usize },
    Compute { who: usize, rows: usize },
    Push { who: usize, token: u32 },
    Drop(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let texts = prop::collection::vec(0u8..3, 0..5);
    prop_oneof![
        4 => (0..OWNERS.len(), prop::bool::weighted(0.2), texts, 1usize..BLOCK_SIZE)
            .prop_map(|(owner, both, texts, more)| Event::Open { owner, both, texts, more }),
        6 => (0usize..6, 1usize..40).prop_map(|(who, rows)| Event::Compute { who, rows }),
        4 => (0usize..6, 0u32..2).prop_map(|(who, token)| Event::Push { who, token }),
        2 => (0usize..6).prop_map(Event::Drop),
    ]
}

impl World {
    fn new() -> Self {
        // Block 0 twice is the operator's own, and so is 1 behind 0.
        let text = |parts: &[u8]| parts.iter().flat_map(|&p| [u32::from(p); BLOCK_SIZE]).collect();
        let configured: Vec<Vec<u32>> = vec![text(&[0, 0]), text(&[0, 1])];
        Self {
            pool: BlockPool::new(BLOCKS, Sharing::On(configured.clone())),
            configured,
            memory: vec![None; BLOCKS],
            naive: vec![],
            held: vec![],
            now: 0,
        }
    }

    fn public(&self, text: &[u32]) -> bool {
        self.configured.iter().any(|c| c.starts_with(text))
    }

    /// Where the naive cache keeps the first `blocks` blocks of a text that opens with `public` blocks
    /// of the operator's.
    fn known(&self, reader: Reader<'static>, public: usize, tokens: &[u32], blocks: usize) -> Option<usize> {
        let text = &tokens[..blocks * BLOCK_SIZE];
        let owner = (blocks > public).then_some(reader.owner);
        self.naive.iter().position(|n| n.text == text && n.owner == owner && n.writes == reader.writes)
    }

    fn open(&mut self, reader: Reader<'static>, tokens: Vec<u32>) {
        let most = (tokens.len() - 1) / BLOCK_SIZE;
        let public =
            (1..=tokens.len() / BLOCK_SIZE).take_while(|&n| self.public(&tokens[..n * BLOCK_SIZE])).count();
        let found: Vec<usize> = (1..=most).map_while(|n| self.known(reader, public, &tokens, n)).collect();
        let used = self.pool.stats().used;
        let idle = found.iter().filter(|&&i| self.naive[i].holders == 0).count();
        let fits = used + idle + blocks_for(tokens.len()) - found.len() <= BLOCKS;
        assert_eq!(self.pool.fits(reader, &tokens, tokens.len()), fits);
        let table = self.pool.open(reader, &tokens, tokens.len());
        assert_eq!(table.is_some(), fits);
        let Some(table) = table else { return };
        assert_eq!(table.kept(), found.len() * BLOCK_SIZE);
        found.iter().for_each(|&i| self.naive[i].holders += 1);
        self.held.push(Held { reader, public, computed: table.kept(), tokens, table });
        self.forget();
    }

    /// What the pool had to forget, the naive cache forgets: always the one that was released first.
    fn forget(&mut self) {
        while self.naive.len() > self.pool.stats().kept + self.shared() {
            let unused = self.naive.iter().enumerate().filter(|(_, n)| n.holders == 0);
            let oldest = unused.min_by_key(|(_, n)| n.released).map(|(i, _)| i).unwrap();
            self.naive.remove(oldest);
        }
    }

    fn shared(&self) -> usize {
        self.naive.iter().filter(|n| n.holders > 0).count()
    }

    fn compute(&mut self, who: usize, rows: usize) {
        let Some(mut held) = (who < self.held.len()).then(|| self.held.remove(who)) else { return };
        let before = held.table.kept() / BLOCK_SIZE;
        held.computed = held.computed.max(held.table.adopt(&held.tokens));
        for n in before + 1.. {
            if n * BLOCK_SIZE >= held.tokens.len() {
                break;
            }
            let Some(i) = self.known(held.reader, held.public, &held.tokens, n) else { break };
            self.naive[i].holders += 1;
            assert!(held.table.kept() >= n * BLOCK_SIZE);
        }
        let end = held.tokens.len().min(held.computed + rows);
        for position in held.computed..end {
            let index = position / BLOCK_SIZE;
            let id = held.table.ids()[index];
            assert!(index * BLOCK_SIZE >= held.table.kept(), "what is kept is read alone");
            let others = self.held.iter().any(|h| h.table.ids().contains(&id));
            assert!(!others, "two hold block {id}, and one writes it");
            let text = held.tokens[..=position].to_vec();
            self.memory[id as usize] = Some((text, held.reader.writes, held.reader.owner));
        }
        held.computed = end;
        let before = held.table.kept() / BLOCK_SIZE;
        held.table.keep(&held.tokens[..end]);
        for n in before + 1..=end / BLOCK_SIZE {
            match self.known(held.reader, held.public, &held.tokens, n) {
                Some(i) => self.naive[i].holders += 1,
                None => {
                    let text = held.tokens[..n * BLOCK_SIZE].to_vec();
                    let owner = (n > held.public).then_some(held.reader.owner);
                    let writes = held.reader.writes;
                    self.naive.push(Naive { text, writes, owner, holders: 1, released: 0 });
                }
            }
        }
        self.held.insert(who, held);
    }

    fn push(&mut self, who: usize, token: u32) {
        let Some(held) = self.held.get_mut(who) else { return };
        if held.table.grow(held.tokens.len() + 1) {
            held.tokens.push(token);
        }
        self.forget();
    }

    fn drop(&mut self, who: usize) {
        if who >= self.held.len() {
            return;
        }
        let held = self.held.remove(who);
        for n in (1..=held.table.kept() / BLOCK_SIZE).rev() {
            let i = self.known(held.reader, held.public, &held.tokens, n).unwrap();
            self.now += 1;
            self.naive[i].holders -= 1;
            self.naive[i].released = self.now;
        }
    }

    /// What must hold at any time.
    fn check(&self) {
        let stats = self.pool.stats();
        let mut holders = [0; BLOCKS];
        for held in &self.held {
            for (index, &id) in held.table.ids().iter().enumerate() {
                holders[id as usize] += 1;
                // What is read is what the sequence itself would have written.
                let end = ((index + 1) * BLOCK_SIZE).min(held.computed);
                if index * BLOCK_SIZE < held.computed {
                    let (text, writes, author) = self.memory[id as usize].as_ref().unwrap();
                    assert_eq!(text, &held.tokens[..end]);
                    assert_eq!(*writes, held.reader.writes);
                    assert!(*author == held.reader.owner || self.public(text), "{author}'s text is read");
                }
            }
        }
        assert_eq!(stats.used, holders.iter().filter(|&&n| n > 0).count());
        assert_eq!(stats.kept, self.naive.len() - self.shared());
        let state = lock(&self.pool.state);
        let unused: Vec<u32> = state.unused.values().copied().collect();
        for id in state.free.iter().chain(&unused) {
            assert_eq!(holders[*id as usize], 0, "block {id} is free and in use");
        }
        let mut all: Vec<u32> = state.free.iter().chain(&unused).copied().collect();
        all.extend((0..BLOCKS as u32).filter(|&id| holders[id as usize] > 0));
        all.sort_unstable();
        assert!(all.iter().copied().eq(0..BLOCKS as u32), "each block is in one place: {all:?}");
        assert_eq!(state.index.len(), state.kept.iter().flatten().count());
    }
}

proptest! {
    #[test]
    fn it_does_what_a_naive_cache_does(events in prop::collection::vec(event(), 0..100)) {
        let mut world = World::new();
        for event in events {
            match event {
                Event::Open { owner, both, texts, more } => {
                    let writes = if both { Writes::Both } else { Writes::One };
                    let mut tokens: Vec<u32> =
                        texts.iter().flat_map(|&t| [u32::from(t); BLOCK_SIZE]).collect();
                    tokens.extend(std::iter::repeat_n(1, more));
                    world.open(Reader { owner: OWNERS[owner], writes }, tokens);
                }
                Event::Compute { who, rows } => world.compute(who, rows),
                Event::Push { who, token } => world.push(who, token),
                Event::Drop(who) => world.drop(who),
            }
            world.check();
        }
        while !world.held.is_empty() {
            world.drop(0);
            world.check();
        }
        prop_assert_eq!(world.pool.stats().used, 0);
    }
}
