//! The words of the demo world: ten domains of everyday life.
//!
//! Every sentence of the world is put together from these lists, so the lists decide what is on
//! topic: a kitchen tool in an answer about money is a fault that the grammar check finds.

/// One field of life. Any of its verbs goes with any of its objects: that makes the topics.
#[derive(Debug)]
pub struct Domain {
    /// Name, for reports.
    pub name: &'static str,
    /// `(base form, -ing form)`.
    pub verbs: [(&'static str, &'static str); 4],
    /// Objects, used with "the".
    pub objects: [&'static str; 6],
    /// Tools, used with "the".
    pub tools: [&'static str; 4],
    /// Places, used with "the".
    pub places: [&'static str; 2],
    /// What is done to the object midway: `(imperative, past)`.
    pub care: [(&'static str, &'static str); 3],
    /// What the activity or a tool does for one, after "it".
    pub benefits: [&'static str; 3],
    /// Terms that only an expert would use, after "given the".
    pub terms: [&'static str; 4],
    /// What can hurt, after "the".
    pub hazards: [&'static str; 3],
}

/// All domains, in the order in which topics are numbered.
pub const DOMAINS: [Domain; 10] = [
    Domain {
        name: "kitchen",
        verbs: [("bake", "baking"), ("cook", "cooking"), ("serve", "serving"), ("freeze", "freezing")],
        objects: ["bread", "potatoes", "fish", "apples", "pumpkin", "dumplings"],
        tools: ["wooden spoon", "steel pan", "clay pot", "paper bag"],
        places: ["kitchen counter", "stove"],
        care: [("rinse", "rinsed"), ("season", "seasoned"), ("warm", "warmed")],
        benefits: ["brings out the flavour", "keeps the crust soft", "fills hungry guests"],
        terms: ["Maillard reaction", "starch gelatinisation", "thermal mass", "hydration ratio"],
        hazards: ["hot steam", "boiling oil", "sharp blade"],
    },
    Domain {
        name: "garden",
        verbs: [("plant", "planting"), ("grow", "growing"), ("trim", "trimming"), ("feed", "feeding")],
        objects: ["roses", "tomatoes", "ivy", "lemon tree", "hedge", "strawberries"],
        tools: ["small rake", "watering can", "garden fork", "pruning knife"],
        places: ["greenhouse", "flower bed"],
        care: [("water", "watered"), ("shade", "shaded"), ("mulch", "mulched")],
        benefits: ["invites the bees", "keeps the roots strong", "brings early blossoms"],
        terms: ["soil acidity", "nitrogen cycle", "root osmosis", "photoperiod response"],
        hazards: ["long thorns", "rusty wire", "strong fertiliser"],
    },
    Domain {
        name: "workshop",
        verbs: [("build", "building"), ("repair", "repairing"), ("paint", "painting"), ("move", "moving")],
        objects: ["bookshelf", "wooden chair", "front door", "cupboard", "window frame", "bench"],
        tools: ["claw hammer", "cordless drill", "hand saw", "spirit level"],
        places: ["workshop floor", "garage"],
        care: [("sand", "sanded"), ("measure", "measured"), ("brace", "braced")],
        benefits: ["hides old scratches", "keeps the joints tight", "makes the wood shine"],
        terms: ["shear strength", "grain orientation", "load distribution", "moisture gradient"],
        hazards: ["loose splinters", "spinning drill bit", "wet varnish"],
    },
    Domain {
        name: "travel",
        verbs: [("plan", "planning"), ("book", "booking"), ("enjoy", "enjoying"), ("shorten", "shortening")],
        objects: ["train journey", "mountain hike", "island tour", "city weekend", "road trip", "boat ride"],
        tools: ["folding map", "light backpack", "phone guide", "paper timetable"],
        places: ["station", "hotel lobby"],
        care: [("price", "priced"), ("schedule", "scheduled"), ("review", "reviewed")],
        benefits: ["opens new views", "keeps the days relaxed", "brings people together"],
        terms: ["seasonal demand curve", "transfer latency", "fare elasticity", "altitude profile"],
        hazards: ["late connection", "slippery path", "busy pickpockets"],
    },
    Domain {
        name: "money",
        verbs: [
            ("manage", "managing"),
            ("track", "tracking"),
            ("reduce", "reducing"),
            ("explain", "explaining"),
        ],
        objects: ["monthly budget", "phone bill", "savings plan", "student loan", "rent", "yearly taxes"],
        tools: ["pocket notebook", "spreadsheet", "bank app", "desk calculator"],
        places: ["bank", "home office"],
        care: [("list", "listed"), ("compare", "compared"), ("round", "rounded")],
        benefits: ["shows where money goes", "keeps debts small", "leaves room for gifts"],
        terms: ["compound interest", "marginal tax rate", "liquidity ratio", "inflation adjustment"],
        hazards: ["hidden fees", "unsigned contract", "false promises"],
    },
    Domain {
        name: "fitness",
        verbs: [
            ("start", "starting"),
            ("practise", "practising"),
            ("improve", "improving"),
            ("time", "timing"),
        ],
        objects: [
            "morning run",
            "yoga routine",
            "swimming lesson",
            "push-up set",
            "bicycle workout",
            "stretching break",
        ],
        tools: ["soft mat", "stopwatch", "jump rope", "training diary"],
        places: ["gym", "park"],
        care: [("pace", "paced"), ("repeat", "repeated"), ("vary", "varied")],
        benefits: ["lifts the mood", "keeps the heart strong", "helps with deep sleep"],
        terms: ["lactate threshold", "oxygen uptake", "muscle hypertrophy", "recovery interval"],
        hazards: ["stiff knees", "slick tiles", "sudden cramps"],
    },
    Domain {
        name: "computing",
        verbs: [
            ("install", "installing"),
            ("update", "updating"),
            ("protect", "protecting"),
            ("test", "testing"),
        ],
        objects: [
            "home network",
            "photo archive",
            "old laptop",
            "web server",
            "email account",
            "music player",
        ],
        tools: ["password manager", "backup disk", "network cable", "command line"],
        places: ["server room", "desk"],
        care: [("scan", "scanned"), ("label", "labelled"), ("copy", "copied")],
        benefits: ["blocks most attacks", "keeps the files safe", "speeds up the work"],
        terms: ["packet latency", "hash collision", "write amplification", "privilege escalation"],
        hazards: ["weak password", "unknown attachment", "frayed power cord"],
    },
    Domain {
        name: "animals",
        verbs: [("train", "training"), ("groom", "grooming"), ("calm", "calming"), ("adopt", "adopting")],
        objects: ["puppy", "kitten", "parrot", "pony", "rabbit", "goldfish"],
        tools: ["soft brush", "treat pouch", "feather toy", "carrying basket"],
        places: ["stable", "living room"],
        care: [("greet", "greeted"), ("pet", "petted"), ("weigh", "weighed")],
        benefits: ["builds quiet trust", "keeps the coat shiny", "makes visitors smile"],
        terms: ["operant conditioning", "cortisol response", "gut microbiome", "vestibular reflex"],
        hazards: ["tiny teeth", "open gate", "toxic leaves"],
    },
    Domain {
        name: "music",
        verbs: [
            ("learn", "learning"),
            ("record", "recording"),
            ("perform", "performing"),
            ("tune", "tuning"),
        ],
        objects: ["piano", "guitar", "violin", "drum kit", "flute", "trumpet"],
        tools: ["metronome", "sheet stand", "clip microphone", "felt cloth"],
        places: ["rehearsal hall", "stage"],
        care: [("polish", "polished"), ("sound", "sounded"), ("adjust", "adjusted")],
        benefits: ["trains the ear", "keeps the rhythm steady", "cheers the neighbours"],
        terms: ["harmonic series", "equal temperament", "attack transient", "resonance peak"],
        hazards: ["loud feedback", "tight strings", "tangled leads"],
    },
    Domain {
        name: "school",
        verbs: [
            ("prepare", "preparing"),
            ("teach", "teaching"),
            ("present", "presenting"),
            ("grade", "grading"),
        ],
        objects: [
            "history lecture",
            "science project",
            "spelling quiz",
            "poetry unit",
            "geometry exam",
            "debate round",
        ],
        tools: ["index cards", "white board", "reading lamp", "colour pencils"],
        places: ["classroom", "library"],
        care: [("outline", "outlined"), ("shorten", "shortened"), ("discuss", "discussed")],
        benefits: ["wakes the curiosity", "keeps the class awake", "rewards careful readers"],
        terms: ["cognitive load", "spaced retrieval", "rubric validity", "working memory"],
        hazards: ["early deadline", "crowded hallway", "copied homework"],
    },
];

/// People of the stories.
pub const NAMES: [&str; 8] = ["Maya", "Omar", "Lena", "Tom", "Aiko", "Felix", "Nora", "Pablo"];
