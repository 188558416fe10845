/* Retention: what deletes records, against a session that is opened, and later claimed and sent what it missed.
 *
 * Retention may delete any record at any time here, however young it is. It does not take the log's lock, and its
 * transaction has several statements, each of which reads what is committed when it begins. Appends, opens and claims
 * hold the log's lock.
 *
 * Everything inside of d_step { } is one statement of the database.
 */
#define holds(name, condition) assert(condition)
#define bit(o) (1 << (o))

#define LAST 4                /* the highest offset */
#define PAGE 1                /* events of a page. In the code 500 */
#define TRIMS 2

/* -- the database ------------------------------------------------------------------------------------------ */
mtype = { an_event_of_the_room, an_event_that_skips_the_client, an_event_of_another_room }
mtype kind[LAST + 1];         /* the log, as it was appended */
byte head = 0;
byte stored = 0;              /* the records that are still there, as bits */
byte floor = 0;               /* nothing at or below it is stored */
byte room_floor = 0;          /* the highest deleted event of the room. 0 if the row is not there */
byte own_floor = 0;           /* the same for this session alone */
byte own_upto = 0;            /* up to where that counts. 0 if the row is not there */
bool locked = false;          /* the log's lock */
bool retention = false;       /* the row lock on sio_log, which retention holds */

bool exists = false;          /* the session */
bool shared = false;          /* the row lock on sio_log, which opening holds */
byte start;                   /* its start, from which on it is in the room, too */
byte lost_below;

#define is_due(o) (kind[o] == an_event_of_the_room)
#define in_room(o) (kind[o] != an_event_of_another_room)

/* sio_deleted: the highest deleted event that the session was due */
#define deleted (own_upto > 0 && own_upto >= room_floor -> own_floor : room_floor)
/* sio_lost */
#define lost(after) (exists && (after < lost_below || (after < floor && room_floor > 0 && deleted > after)))

proctype emitters() {
    do
    :: d_step { !locked && head < LAST -> head++; kind[head] = an_event_of_the_room; stored = stored | bit(head); printf("%d is appended: %e\n", head, kind[head]) }
    :: d_step { !locked && head < LAST -> head++; kind[head] = an_event_that_skips_the_client; stored = stored | bit(head); printf("%d is appended: %e\n", head, kind[head]) }
    :: d_step { !locked && head < LAST -> head++; kind[head] = an_event_of_another_room; stored = stored | bit(head); printf("%d is appended: %e\n", head, kind[head]) }
    :: head == LAST -> break
    od
}

/* One transaction of sio_trim. What it writes is visible from its commit on. */
proctype pruner() {
    byte trims = 0, upto, last, due, o;
    bool needed, own;
end:
    do
    :: trims < TRIMS ->
        trims++;
        if
        :: d_step {
            !retention && !shared && floor < head ->
            retention = true; upto = floor + 1;
            printf("retention begins\n")
           }
        :: d_step {
            !retention && !shared && floor + 1 < head ->
            retention = true; upto = floor + 2;
            printf("retention begins\n")
           }
        fi;
        d_step {              /* which rooms lose events, and whether a session may ask for their floors */
            o = floor + 1; last = 0;
            do
            :: o <= upto -> if :: in_room(o) -> last = o :: else fi; o++
            :: else -> break
            od;
            needed = (last > 0 && exists && start < last);
            printf("retention looks for sessions: up to %d goes, and there is %d\n", upto, exists)
        };
        d_step {              /* sio_raise_floors: the last event skipped the client, which gets a floor of its own */
            own = false; due = 0;
            if
            :: needed && exists && !is_due(last) ->
                o = floor + 1;
                do
                :: o <= upto -> if :: is_due(o) -> due = o :: else fi; o++
                :: else -> break
                od;
                own = true;
                if :: room_floor > 0 && deleted > due -> due = deleted :: else fi
            :: else -> skip
            fi
        };
        d_step {              /* the commit */
            if :: own && exists -> own_floor = due; own_upto = upto :: else fi;
            if :: needed && last > room_floor -> room_floor = last :: else fi;
            o = floor + 1;
            do
            :: o <= upto -> stored = stored & (31 - bit(o)); o++
            :: else -> break
            od;
            floor = upto;
            printf("retention has deleted up to %d, with the floor of the room at %d, and the session's at %d\n", upto, room_floor, own_floor);
            retention = false; o = 0; upto = 0; last = 0; due = 0; needed = false; own = false
        };
        if
        :: d_step {           /* drop_room_floors: it reads, and commits later */
            room_floor > 0 && (!exists || room_floor <= start) -> needed = true
           };
           d_step { needed = false; room_floor = 0; printf("the floor of the room is dropped\n") }
        :: true
        fi
    od
}

proctype client() {
    byte cursor, after, sent, page, upto, o, count, i;
    bool missing;
    d_step { cursor = head; printf("a client connects, and the cursor is at %d\n", cursor) };
    /* sio_open */
    d_step {
        !locked && (cursor == head || !retention) ->
        locked = true; shared = cursor < head;
        lost_below = floor; start = cursor;
        printf("its session is inserted\n")
    };
    d_step { locked = false; shared = false; exists = true; printf("its session is committed\n") };
    /* it receives some of what it is due, and its connection breaks */
    after = start;
    do
    :: d_step { after < head && (stored & bit(after + 1)) -> after++ }
    :: break
    od;
    skip;
    d_step {                  /* what it presents is the offset of an event, or nothing */
        do
        :: after > start && !is_due(after) -> after--
        :: else -> break
        od;
        printf("its connection breaks after %d\n", after)
    };
    skip;
    /* sio_claim */
    d_step {
        !locked -> locked = true;
        sent = after; upto = head;
        o = sent + 1;
        do
        :: o <= head && count < PAGE ->
            if :: is_due(o) && (stored & bit(o)) -> page = page | bit(o); count++; i = o :: else fi;
            o++
        :: else -> break
        od;
        if :: count == PAGE -> upto = i :: else fi;
        o = 0; i = 0; count = 0;
        printf("it claims the session\n")
    };
    d_step {
        missing = lost(after); locked = false;
        printf("some of it is lost: %d\n", missing)
    };
    do
    :: missing -> break
    :: !missing ->
        d_step {
            i = sent + 1;
            do
            :: i <= upto -> holds(no_hole, !is_due(i) || (page & bit(i))); i++
            :: else -> break
            od;
            printf("a page up to %d is sent\n", upto);
            sent = upto; page = 0; i = 0; upto = 0
        };
        if
        :: sent == LAST -> break
        :: d_step {
            sent < LAST && sent < head ->
            missing = lost(sent);
            upto = head; o = sent + 1;
            do
            :: o <= head && count < PAGE ->
                if :: is_due(o) && (stored & bit(o)) -> page = page | bit(o); count++; i = o :: else fi;
                o++
            :: else -> break
            od;
            if :: count == PAGE -> upto = i :: else fi;
            o = 0; i = 0; count = 0;
            printf("a page is read, and some of it is lost: %d\n", missing)
           }
        fi
    od
}

init {
    atomic { run emitters(); run pruner(); run client() }
}
