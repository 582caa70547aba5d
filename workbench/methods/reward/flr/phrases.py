"""Phrases a pleased or an annoyed user might say next, ten of each for six dimensions.

Short, generic, in the first person, and as many positive as negative ones.
"""

POLARITIES = ("positive", "negative")


def _split(text: str) -> list[str]:
    """Phrases with bars between them."""
    return [" ".join(phrase.split()) for phrase in text.split("|")]


PHRASES: dict[str, dict[str, list[str]]] = {
    "understanding": {
        "positive": _split(
            """Yes, you understood exactly what I meant. | You got my question right. | That is just what I was asking
            about. | I can tell that you read my message carefully. | You saw what I was after. | Right, that was my
            point. | You understood me on the first try. | Good, you know what I mean. | You took my question the way
            I meant it. | I feel understood, thank you."""
        ),
        "negative": _split(
            """That is not what I meant. | You misread my question. | I was asking about something else. | Please read
            my message again. | You did not get what I was after. | No, you missed my point. | I don't think you
            understood me. | You seem to be confused about my question. | You took my question the wrong way. | I
            have to explain it again, you did not follow me."""
        ),
    },
    "relevance": {
        "positive": _split(
            """That is right on topic. | All of this matters for my question. | You stayed with what I asked. | This is
            exactly the part I care about. | Everything here helps me. | You kept to the point. | That fits my
            situation well. | This is what I needed to hear about. | Nothing in it is beside the point. | Good, that
            answers my question directly."""
        ),
        "negative": _split(
            """That is off topic. | This has little to do with my question. | Why are you telling me this? | I did not
            ask about that. | Most of this does not help me. | You are beside the point. | That does not fit my
            situation. | Please stay with what I asked. | What has that got to do with it? | You are changing the
            subject."""
        ),
    },
    "correctness": {
        "positive": _split(
            """I checked it, and you are right. | That is correct. | Your facts are in order. | This agrees with what I
            know. | I found no mistake in it. | It worked just as you said. | Your reasoning holds up. | I can rely
            on this. | That is accurate, thanks. | Yes, that is how it is."""
        ),
        "negative": _split(
            """I checked it, and that is wrong. | That is not correct. | Your facts are mixed up. | This contradicts
            what I know. | I found a mistake in it. | I tried it and it did not work. | Your reasoning does not hold
            up. | I cannot rely on this. | I believe you made that up. | No, that is not how it is."""
        ),
    },
    "engagingness": {
        "positive": _split(
            """This is fun to talk about, tell me more! | I really enjoy this conversation. | That is a fascinating
            answer. | I want to hear more about this. | You made this interesting for me. | I like the way you put
            that. | Great, let us keep going. | That made me curious. | You are good to talk to. | I could listen to
            this all day."""
        ),
        "negative": _split(
            """This is boring. | I am losing interest. | That is a dull answer. | I do not want to hear more about this.
            | You make this sound tedious. | I do not like the way you put that. | Let us stop here. | That did not
            make me curious at all. | It is no fun to talk to you. | Please talk about something more interesting."""
        ),
    },
    "informativeness": {
        "positive": _split(
            """I learned something new, thank you. | That is full of useful detail. | Now I know what to do. | You told
            me everything I needed. | The examples really help. | That is a thorough answer. | I have no questions
            left. | This is more than I had hoped to learn. | Very informative, thanks. | That filled a gap for me."""
        ),
        "negative": _split(
            """I did not learn anything from that. | That is too vague. | I still do not know what to do. | You left out
            what I needed. | Can you give me any detail at all? | That is a shallow answer. | Now I have more
            questions than before. | I knew all of this already. | There is hardly any information in it. | Please be
            more specific."""
        ),
    },
    "following": {
        "positive": _split(
            """That is exactly what I asked for. | You followed my instructions to the letter. | You did everything I
            wanted. | Perfect, just the form I wanted. | You kept to all of my conditions. | Great, you did not skip
            anything. | That is how I wanted it done. | You did what I said. | Nothing is missing from what I asked.
            | I can use this as it is."""
        ),
        "negative": _split(
            """That is not what I asked for. | You did not follow my instructions. | You left out a part of the task. |
            That is not the form I wanted. | You ignored one of my conditions. | You skipped something. | I wanted it
            done differently. | Please do what I said. | Something is missing from what I asked. | I will have to do
            this again myself."""
        ),
    },
}
