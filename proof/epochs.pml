/* Epochs: a log that goes back to an earlier state, and counts on from there. One node, one client.
 *
 * The database is saved, and goes back to what was saved: a restore, a crash that loses the last commits, or a standby
 * that was behind. Each time it runs on another server, as its fingerprint shows. An offset is epoch * WIDTH + number.
 * Epochs have random keys, which this model numbers.
 *
 * Everything inside of d_step { } is one statement of the database, or one tick of the node's event loop.
 */
#define holds(name, condition) assert(condition)
#define bit(o) (1 << (o))

#define WIDTH 5               /* offsets of an epoch. In the code 2^40 */
#define EPOCHS 3
#define OFFSETS 15            /* WIDTH * EPOCHS */
#define EMITS 4
#define RESTORES 2
#define SAVES 2
#define RETURNS 3             /* how often the client comes back */
#define RUNNING 31            /* the end of an epoch that has not ended */

/* -- the database ------------------------------------------------------------------------------------------ */
byte server = 1;              /* sio_fingerprint() of the server that runs */
byte event[OFFSETS];          /* the event of each offset: each emit is another one */
byte key[EPOCHS];
byte ended[EPOCHS] = RUNNING; /* the highest valid offset of an epoch, once the next one has begun */
byte epochs = 1;
byte sequence = 0;
byte head = 0;
byte marker = 1;              /* the server on which the running epoch began */
bool session = false;         /* the row of the client's session */

byte saved_event[OFFSETS], saved_key[EPOCHS], saved_ended[EPOCHS], saved_epochs, saved_sequence, saved_head;
bool saved_session;
byte saves = 0;

byte emits = 0, restores = 0, keys = 1;

/* -- the node ---------------------------------------------------------------------------------------------- */
byte followed = 1;            /* the server whose log it has checked */
byte known_key[EPOCHS], known_ended[EPOCHS] = RUNNING, known_epochs = 1;
byte cursor = 0;
bool live = false;            /* the client is connected */

/* -- the client -------------------------------------------------------------------------------------------- */
bool has_session = false;
byte got = 0;                 /* the events that it received in this session, as bits */
byte start = 0;               /* the offset from which on it is due events */
byte last = 0, last_key = 0;  /* the offset that it presents, and the key that signed it */
byte returns = 0;

/* sio_in_log, and the same check by the epochs that the node knows */
#define in_log(o, k) (o / WIDTH < epochs && key[o / WIDTH] == k && o <= ended[o / WIDTH])
#define is_known(o, k) (o / WIDTH < known_epochs && known_key[o / WIDTH] == k && o <= known_ended[o / WIDTH])

inline begin_epoch() {        /* sio_check_epoch */
    if
    :: marker != server ->
        ended[epochs - 1] = head;
        key[epochs] = keys; keys++;
        sequence = epochs * WIDTH;
        epochs++;
        marker = server;
        printf("epoch %d begins after %d\n", epochs - 1, head)
    :: else -> skip
    fi
}

inline emit() {
    begin_epoch();
    emits++; sequence++; event[sequence] = emits; head = sequence;
    printf("event %d gets the offset %d\n", emits, sequence)
}

/* The client has received everything up to an offset of the log, and nothing that is not in the log. */
inline check_client(upto) {
    i = 0; in_the_log = 0;
    do
    :: i < OFFSETS ->
        if
        :: event[i] > 0 ->
            in_the_log = in_the_log | bit(event[i]);
            holds(nothing_lost, i <= start || i > upto || (got & bit(event[i])))
        :: else -> skip
        fi;
        i++
    :: else -> break
    od;
    holds(nothing_that_was_lost, (got & in_the_log) == got);
    i = 0; in_the_log = 0
}

inline receive(o, k) {
    got = got | bit(event[o]); last = o; last_key = k;
    printf("the client receives event %d\n", event[o])
}

inline close() {
    if :: live -> live = false; printf("the node closes the client's connection\n") :: else -> skip fi
}

proctype database() {
    byte i;
end:
    do
    :: d_step { emits < EMITS -> emit() }
    :: d_step {
        saves < SAVES && restores < RESTORES -> saves++;
        i = 0;
        do :: i < OFFSETS -> saved_event[i] = event[i]; i++ :: else -> break od;
        i = 0;
        do :: i < EPOCHS -> saved_key[i] = key[i]; saved_ended[i] = ended[i]; i++ :: else -> break od;
        saved_epochs = epochs; saved_sequence = sequence; saved_head = head; saved_session = session;
        i = 0;
        printf("the database is saved\n")
      }
    :: d_step {
        saves > 0 && restores < RESTORES && epochs < EPOCHS -> restores++; server++;
        i = 0;
        do :: i < OFFSETS -> event[i] = saved_event[i]; i++ :: else -> break od;
        i = 0;
        do :: i < EPOCHS -> key[i] = saved_key[i]; ended[i] = saved_ended[i]; i++ :: else -> break od;
        epochs = saved_epochs; sequence = saved_sequence; head = saved_head; session = saved_session; marker = 0;
        i = 0;
        printf("the database goes back to what was saved\n")
      }
    od
}

proctype node() {
    byte i, in_the_log, o;
end:
    do
    :: d_step {               /* the next record of a log that it has checked */
        followed == server && cursor < head && known_epochs == epochs ->
        o = cursor + 1;
        do :: event[o] == 0 -> o++ :: else -> break od;
        cursor = o;
        printf("the cursor passes %d\n", cursor);
        if
        :: live && cursor > start -> check_client(cursor - 1); receive(cursor, known_key[cursor / WIDTH])
        :: else -> skip
        fi;
        o = 0
      }
    :: d_step {               /* it is connected to another server, or meets an epoch that it does not know */
        followed != server || known_epochs < epochs ->
        begin_epoch();
        if
        :: cursor == 0 || (key[cursor / WIDTH] == known_key[cursor / WIDTH] && cursor / WIDTH < epochs && cursor <= ended[cursor / WIDTH]) ->
            if :: !session -> close() :: else -> skip fi
        :: else ->
            printf("the log is another one\n");
            session = (live -> false : session);
            close();
            cursor = head
        fi;
        i = 0;
        do :: i < EPOCHS -> known_key[i] = key[i]; known_ended[i] = ended[i]; i++ :: else -> break od;
        known_epochs = epochs; followed = server;
        i = 0;
        printf("the node knows the log of server %d\n", followed)
      }
    :: d_step {               /* the client connects */
        !live && returns < RETURNS && followed == server && known_epochs == epochs -> returns++;
        if
        :: has_session && session && is_known(last, last_key) && in_log(last, last_key) ->
            printf("the client comes back and recovers from %d\n", last);
            check_client(last);
            o = last + 1;
            do
            :: o <= cursor -> if :: event[o] > 0 && o > start -> receive(o, key[o / WIDTH]) :: else -> skip fi; o++
            :: else -> break
            od;
            o = 0
        :: else ->
            printf("the client gets a new session\n");
            has_session = true; session = true;
            got = 0; start = cursor; last = cursor; last_key = known_key[cursor / WIDTH]
        fi;
        live = true
      }
    :: d_step { live -> live = false; printf("the connection breaks\n") }
    od
}

init {
    atomic { run database(); run node() }
}
