//! What people ask a phone for, intent by intent.

/// Something a phone can be asked to do, in the three forms that sentences need:
/// *set* an alarm, stop *setting* an alarm, you have *set* an alarm.
#[derive(Clone, Copy)]
pub(crate) struct Act {
    pub verb: [&'static str; 3],
    pub rest: &'static str,
}

/// One intent: acts, requests that name no act, and requests that wrap another intent's act, given
/// there as `{base}` or `{doing}`.
#[derive(Clone, Copy)]
pub(crate) struct Intent {
    pub name: &'static str,
    pub acts: &'static [Act],
    pub direct: &'static [&'static str],
    pub around: &'static [&'static str],
}

const fn act(base: &'static str, doing: &'static str, done: &'static str, rest: &'static str) -> Act {
    Act { verb: [base, doing, done], rest }
}
const fn set(rest: &'static str) -> Act {
    act("set", "setting", "set", rest)
}
const fn put(rest: &'static str) -> Act {
    act("put", "putting", "put", rest)
}
const fn turn(rest: &'static str) -> Act {
    act("turn", "turning", "turned", rest)
}
const fn make(rest: &'static str) -> Act {
    act("make", "making", "made", rest)
}
const fn tell(rest: &'static str) -> Act {
    act("tell", "telling", "told", rest)
}
const fn find(rest: &'static str) -> Act {
    act("find", "finding", "found", rest)
}
const fn show(rest: &'static str) -> Act {
    act("show", "showing", "shown", rest)
}
const fn take(rest: &'static str) -> Act {
    act("take", "taking", "taken", rest)
}
const fn write(rest: &'static str) -> Act {
    act("write", "writing", "written", rest)
}
const fn start(rest: &'static str) -> Act {
    act("start", "starting", "started", rest)
}
const fn add(rest: &'static str) -> Act {
    act("add", "adding", "added", rest)
}
const fn switch(rest: &'static str) -> Act {
    act("switch", "switching", "switched", rest)
}
const fn look(rest: &'static str) -> Act {
    act("look", "looking", "looked", rest)
}

/// The intents by class index, in alphabetical order.
pub(crate) const INTENTS: [Intent; 15] = [
    ALARM, CALCULATE, CALL, LIGHTS, MESSAGE, MUSIC, NAVIGATE, REMINDER, SEARCH, SHOPPING, SMALLTALK, TIMER,
    TRANSLATE, VOLUME, WEATHER,
];

const ALARM: Intent = Intent {
    name: "alarm",
    acts: &[
        set("an alarm for {time}"),
        set("my alarm to {time} {day}"),
        act("wake", "waking", "woken", "me up at {time}"),
        act("wake", "waking", "woken", "me {day} at {time}"),
        put("the alarm on {time}"),
        act("move", "moving", "moved", "the alarm to {time}"),
        act("get", "getting", "got", "me out of bed at {time}"),
        switch("on the alarm for {time}"),
    ],
    direct: &[
        "i have to be up by {time} {day}",
        "i need an alarm {day} at {time}",
        "a wake up call at {time} would be good",
        "make sure i am awake by {time}",
        "i must not sleep longer than {time} {day}",
    ],
    around: &["get me up early {day} because i have to {base}"],
};

const CALCULATE: Intent = Intent {
    name: "calculate",
    acts: &[
        act("work", "working", "worked", "out {number} times {number}"),
        act("calculate", "calculating", "calculated", "{percent} of {number}"),
        add("{number} and {number}"),
        add("{number} to {number}"),
        take("{number} from {number}"),
        act("divide", "dividing", "divided", "{number} by {number}"),
        act("split", "splitting", "split", "{number} euros between {number} people"),
        find("the sum of {number} and {number}"),
    ],
    direct: &[
        "what is {number} times {number}",
        "how much is {percent} of {number}",
        "how many minutes are in {number} hours",
        "what do i get if i take {number} from {number}",
        "{number} people pay {number} euros, what does each pay",
    ],
    around: &["if i {base} {number} times a day, how often is that in {number} days"],
};

const CALL: Intent = Intent {
    name: "call",
    acts: &[
        act("call", "calling", "called", "{person}"),
        act("ring", "ringing", "rung", "{person}"),
        act("phone", "phoning", "phoned", "{person}"),
        act("call", "calling", "called", "the {place}"),
        act("call", "calling", "called", "{person} back"),
        act("get", "getting", "got", "{person} on the phone"),
        put("me through to {person}"),
        act("dial", "dialling", "dialled", "the number of the {place}"),
    ],
    direct: &[
        "i want to talk to {person}",
        "i need to hear the voice of {person}",
        "can i reach {person} by phone",
        "is the {place} picking up the phone {day}",
        "connect me with {person}",
    ],
    around: &[
        "i want to ask {person} on the phone how to {base}",
        "get me someone on the line who can {base}",
    ],
};

const LIGHTS: Intent = Intent {
    name: "lights",
    acts: &[
        turn("{switch} the lights in the {room}"),
        turn("the {room} lamp {way}"),
        switch("{switch} the {room} light"),
        act("dim", "dimming", "dimmed", "the lights to {percent}"),
        make("it {brighter} in the {room}"),
        set("the {room} light to {colour}"),
        make("the {room} lamp {colour}"),
        put("the {room} lights {switch}"),
    ],
    direct: &[
        "it is too dark in the {room}",
        "i can't see anything in the {room}",
        "no more light in the {room}",
        "the {room} should be {brighter}",
        "who left the lamp {switch} in the {room}, change that",
    ],
    around: &["it is too dark in the {room} to {base}"],
};

const MESSAGE: Intent = Intent {
    name: "message",
    acts: &[
        act("text", "texting", "texted", "{person}"),
        act("send", "sending", "sent", "{person} a message"),
        act("send", "sending", "sent", "a message to the {place}"),
        write("to {person} that {news}"),
        tell("{person} that {news}"),
        act("let", "letting", "let", "{person} know that {news}"),
        act("answer", "answering", "answered", "the message from {person}"),
        act("message", "messaging", "messaged", "{person} about the {event}"),
    ],
    direct: &[
        "{person} should know that {news}",
        "new message to {person}, {news}",
        "{person} is waiting for a text about the {event}",
        "i owe {person} a reply about the {event}",
    ],
    around: &[
        "tell {person} to {base}",
        "ask {person} to {base}",
        "let {person} know that i had to {base}",
        "text {person} that i am {doing}",
    ],
};

const MUSIC: Intent = Intent {
    name: "music",
    acts: &[
        act("play", "playing", "played", "{song}"),
        act("play", "playing", "played", "some {genre}"),
        put("on some {genre}"),
        put("{song} on the {device}"),
        start("my {mood} playlist"),
        turn("on the {genre}"),
        act("shuffle", "shuffling", "shuffled", "my {mood} songs"),
        act("skip", "skipping", "skipped", "to {song}"),
    ],
    direct: &[
        "i want to hear {song}",
        "i am in the mood for {genre}",
        "how about some {genre} in the {room}",
        "something {mood} to listen to",
        "what about the song {song}",
    ],
    around: &["i need {genre} on while i {base}", "some {mood} songs for {doing}"],
};

const NAVIGATE: Intent = Intent {
    name: "navigate",
    acts: &[
        take("me to the {place}"),
        take("me to {city}"),
        find("the way to the {place}"),
        show("me the road to {city}"),
        act("guide", "guiding", "guided", "me to the {place}"),
        act("bring", "bringing", "brought", "me to {person}"),
        start("the route to the {place}"),
        look("for a way around {city}"),
    ],
    direct: &[
        "how do i get to the {place}",
        "where is the nearest {place}",
        "what is the fastest way to {city}",
        "i am lost and want to go to the {place}",
        "how long is the drive to {city}",
    ],
    around: &["i have to go to the {place} to {base}, which way is it"],
};

const REMINDER: Intent = Intent {
    name: "reminder",
    acts: &[
        act("remind", "reminding", "reminded", "me to {chore} {day}"),
        act("remind", "reminding", "reminded", "me about the {event}"),
        act("remind", "reminding", "reminded", "me at {time} to {chore}"),
        write("down that i have to {chore}"),
        make("a note about the {event} {day}"),
        tell("me at {time} that i have to {chore}"),
        set("a reminder for the {event}"),
        put("the {event} in my notes for {time}"),
    ],
    direct: &[
        "i must not forget to {chore} {day}",
        "don't let me forget the {event}",
        "i keep forgetting to {chore}, help me with that",
        "note to self, {chore} {day}",
    ],
    around: &[
        "remind me to {base}",
        "don't let me forget to {base}",
        "tell me {day} that i have to {base}",
        "make a note that i wanted to {base}",
    ],
};

const SEARCH: Intent = Intent {
    name: "search",
    acts: &[
        look("up {topic}"),
        act("search", "searching", "searched", "for {topic}"),
        find("something about {topic}"),
        find("out who invented the {thing}"),
        show("me articles about {topic}"),
        act("check", "checking", "checked", "what is new about {topic}"),
        act("read", "reading", "read", "up on {topic}"),
        get_me("facts about {topic}"),
    ],
    direct: &[
        "who invented the {thing}",
        "what is known about {topic}",
        "what is the history of {topic}",
        "i wonder where the {thing} comes from",
        "why do people like {topic}",
    ],
    around: &["look up how to {base}", "find out how people {base}", "show me a page about {doing}"],
};

const fn get_me(rest: &'static str) -> Act {
    act("get me", "getting me", "got me", rest)
}

const SHOPPING: Intent = Intent {
    name: "shopping",
    acts: &[
        add("{item} to my list"),
        put("{item} on the list"),
        write("{item} on the shopping list"),
        act("order", "ordering", "ordered", "{item}"),
        act("buy", "buying", "bought", "{item}"),
        get_me("{item} from the {place}"),
        make("a list with {item} and {item}"),
        add("{number} {thing}s to the order"),
    ],
    direct: &[
        "we are out of {item}",
        "there is no more {item} at home",
        "{item} and {item} are missing from the list",
        "i need to buy {item} {day}",
    ],
    around: &["i need {item} to {base}, put that on the list", "add what i need for {doing} to the list"],
};

const SMALLTALK: Intent = Intent {
    name: "smalltalk",
    acts: &[
        tell("me a joke"),
        tell("me how you are"),
        tell("me about your day"),
        act("cheer", "cheering", "cheered", "me up"),
        act("talk", "talking", "talked", "with me"),
        act("guess", "guessing", "guessed", "what i did {day}"),
        act("say", "saying", "said", "something nice"),
        make("me laugh"),
    ],
    direct: &[
        "do you like {genre}",
        "i am so bored {day}",
        "are you a robot or a {thing}",
        "have you ever been to {city}",
        "you sound like {person}",
    ],
    around: &[
        "do you ever get tired of {doing}",
        "i spent the whole day {doing}",
        "would you {base} if you were human",
        "{person} never wants to {base}, funny",
        "who taught you to {base}",
    ],
};

const TIMER: Intent = Intent {
    name: "timer",
    acts: &[
        set("a timer for {span}"),
        start("a timer for {span}"),
        act("count", "counting", "counted", "down {span}"),
        act("time", "timing", "timed", "the {dish} for {span}"),
        put("{span} on the clock"),
        add("{span} to the timer"),
        tell("me when {span} are over"),
        act("stop", "stopping", "stopped", "the clock after {span}"),
    ],
    direct: &[
        "the {dish} needs {span}, keep an eye on it",
        "let me know in {span} that the {dish} is done",
        "beep after {span}",
        "i need {span} on the clock for the {dish}",
    ],
    around: &["give me {span} to {base}, then beep", "i am {doing} for {span}, stop me when they are over"],
};

const TRANSLATE: Intent = Intent {
    name: "translate",
    acts: &[
        act("translate", "translating", "translated", "{phrase} into {language}"),
        put("{phrase} into {language}"),
        turn("{phrase} into {language}"),
        act("say", "saying", "said", "{phrase} in {language}"),
        tell("me the {language} word for {thing}"),
        write("{phrase} in {language}"),
        find("the {language} for {phrase}"),
        show("me {phrase} in {language}"),
    ],
    direct: &[
        "what is {phrase} in {language}",
        "how would you say {phrase} in {language}",
        "i need the {language} word for {thing}",
        "what do people in {city} say for {phrase}",
    ],
    around: &[
        "how do you say {base} in {language}",
        "what is the {language} for {doing}",
        "translate {base} into {language}",
    ],
};

const VOLUME: Intent = Intent {
    name: "volume",
    acts: &[
        turn("the {device} {way}"),
        turn("the music {way}"),
        turn("the {genre} {way}"),
        make("the {device} {louder}"),
        make("{song} {louder}"),
        set("the {device} to {percent}"),
        act("mute", "muting", "muted", "the {device}"),
        put("the sound in the {room} at {percent}"),
    ],
    direct: &[
        "the {device} is too loud",
        "i can't hear the {genre} in the {room}",
        "a bit {louder} in the {room}",
        "{person} is asleep, so the {device} should be {louder}",
    ],
    around: &["it is too loud to {base}", "i can't hear you {doing}, speak up"],
};

const WEATHER: Intent = Intent {
    name: "weather",
    acts: &[
        act("check", "checking", "checked", "the weather in {city}"),
        tell("me the forecast for {city}"),
        look("whether it will rain {day}"),
        look("up the temperature in {city}"),
        show("me the rain over {city}"),
        find("out if i need an umbrella {day}"),
        tell("me how cold it is in {city}"),
        act("see", "seeing", "seen", "if it gets sunny {day}"),
    ],
    direct: &[
        "will it rain in {city} {day}",
        "do i need a coat {day}",
        "how hot is it in {city}",
        "what is it like outside at {time}",
        "is it going to snow {day}",
    ],
    around: &["is it dry enough {day} to {base} outside", "will the sun be out {day} while i {base}"],
};
