/* Append and cursor: the log's lock, offsets, commits and notifications, and the cursor of one node.
 *
 * Three writers append: the node itself, another node, and an application's transaction that may roll back. Each
 * record that commits has to be applied by the node once, in the order of the offsets. A cursor depends on the log
 * and on what is announced to it, so one node stands for all.
 *
 * Everything inside of d_step { } is one statement of the database, or one tick of the node's event loop.
 */
#define holds(name, condition) assert(condition)
#define bit(o) (1 << (o))

#define LAST 4                /* the highest offset that is ever taken */
#define PAGE 2                /* records of a range read. In the code 500 */
#define KEPT 1                /* announcements that are kept during a range read. In the code 4 MB */

mtype = { the_node, another_node, an_application }  /* the writers, as holders of the lock */

/* -- the database ------------------------------------------------------------------------------------------ */
mtype lock_of_the_log = 0;    /* its holder, 0 for nobody */
byte sequence = 0;            /* the last offset that was taken */
byte stored = 0;              /* the offsets of visible records, as bits */
byte head = 0;                /* the highest of them */

bool listening = true;        /* the LISTEN connection of the node is there */
bool unheard = false;         /* a notification got lost although the connection is there */
chan notifications = [4] of { byte, byte, bool, mtype };  /* previous offset, last offset, with records?, writer */
chan answers = [1] of { byte, byte, bool };              /* to the node's own append: the same, or the answer is lost */

/* -- the node ---------------------------------------------------------------------------------------------- */
byte cursor = 0;
byte applied = 0;             /* the offsets that were applied, as bits */
bool sending = false;         /* its own append is under way */
bool ring = false;            /* there may be something above the cursor */
bool reading = false;         /* a range read is under way */
byte page = 0;                /* the records that it returned, as bits */
bool more = false;            /* it returned as many as it may */
bool arrived = false;         /* they have arrived */
byte kept = 0;                /* announcements that came during the read */
byte kept_prev, kept_last;
bool kept_carried;

/* -- the writers -------------------------------------------------------------------------------------------- */
inline append(me, count, carried) {
    d_step { lock_of_the_log == 0 -> lock_of_the_log = me; printf("%e takes the lock\n", me) }
    d_step {
        prev = sequence; sequence = sequence + count; last = sequence;
        printf("%e takes offset %d to %d\n", me, prev + 1, last)
    }
    if
    :: d_step {
        o = prev;
        do
        :: o < last ->
            o++;
            holds(commit_order, head < o);
            stored = stored | bit(o); head = (head > o -> head : o)
        :: else -> break
        od;
        o = 0;
        printf("%e commits %d to %d\n", me, prev + 1, last);
        if
        :: listening -> notifications!prev, last, carried, me
        :: else -> printf("the node does not listen\n")
        fi
      }
    :: d_step { me == an_application -> last = 0; printf("%e rolls back\n", me) }
    fi;
    d_step { lock_of_the_log = 0; printf("%e lets the lock go\n", me) }
}

proctype writer_of_node() {
    byte prev, last, o;
    sending = true;
    append(the_node, 1, true);
    if
    :: answers!prev, last, true
    :: answers!prev, last, false  /* the answer is lost. The batch is found in the log, and only announced */
    fi
}

proctype writer_of_other() {
    byte prev, last, o;
    append(another_node, 2, true)
}

proctype application() {
    byte prev, last, o;
    append(an_application, 1, false)  /* too large for a notification */
}

/* -- the cursor -------------------------------------------------------------------------------------------- */
inline apply(record) {
    holds(once_in_order, record > cursor && !(applied & bit(record)));
    applied = applied | bit(record); cursor = record;
    printf("the node applies %d\n", record)
}

inline sweep(above, upto) {
    i = above + 1;
    do
    :: i <= upto -> if :: i > cursor -> apply(i) :: else fi; i++
    :: else -> break
    od;
    i = 0
}

inline offer(prev, last, carried) {
    if
    :: last <= cursor -> skip
    :: else ->
        if
        :: reading -> kept++; kept_prev = prev; kept_last = last; kept_carried = carried
        :: !reading && carried && prev <= cursor -> sweep(prev, last)
        :: else -> ring = true
        fi
    fi
}

inline take_page() {          /* at most PAGE records above the cursor, as one statement sees them */
    i = 1; n = 0; page = 0;
    do
    :: i <= LAST && n < PAGE ->
        if :: i > cursor && (stored & bit(i)) -> page = page | bit(i); n++ :: else fi;
        i++
    :: else -> break
    od;
    more = (n == PAGE);
    i = 0; n = 0;
    arrived = true;
    printf("the node reads above %d: the database answers as of now, up to %d\n", cursor, head)
}

inline end_of_read() {
    reading = false;
    n = kept; kept = 0;
    if
    :: n > 0 && n <= KEPT -> offer(kept_prev, kept_last, kept_carried)
    :: n > KEPT -> ring = true
    :: else -> skip
    fi;
    n = 0
}

proctype node() {
    byte prev, last, i, n;
    bool carried;
    mtype writer;
end:
    do
    :: d_step {
        notifications?prev, last, carried, writer ->
        if
        :: writer == the_node && sending -> printf("the node skips its own notification\n")
        :: else -> printf("the node hears of %d to %d\n", prev + 1, last); offer(prev, last, carried)
        fi;
        prev = 0; last = 0; carried = false; writer = 0
      }
    :: d_step {
        answers?prev, last, carried ->
        printf("the node hears how its append of %d went\n", last);
        sending = false;
        offer(prev, last, carried);
        prev = 0; last = 0; carried = false
      }
    :: d_step { ring && !reading -> ring = false; reading = true }
    :: d_step { reading && !arrived -> take_page() }
    :: d_step {
        reading && arrived ->
        arrived = false; i = 1;
        do
        :: i <= LAST -> if :: (page & bit(i)) && i > cursor -> apply(i) :: else fi; i++
        :: else -> break
        od;
        i = 0; page = 0;
        if :: more -> more = false :: else -> end_of_read() fi
      }
    :: d_step {               /* the probe: it runs here only if something got lost, so that it hides no other fault */
        unheard -> unheard = false;
        printf("the probe finds that the log ends at %d\n", head);
        offer(head, head, false)
      }
    od
}

/* -- what breaks ------------------------------------------------------------------------------------------- */
proctype network() {
    byte prev, last;
    bool carried;
    mtype writer;
    if
    :: d_step {
        listening = false; printf("the LISTEN connection breaks\n");
        do :: notifications?prev, last, carried, writer :: empty(notifications) -> break od
      };
      d_step { listening = true; printf("the node listens again\n") };
      d_step { ring = true; printf("the node looks for what it missed\n") }
    :: d_step { notifications?prev, last, carried, writer -> unheard = true; printf("a notification is lost\n") }
    :: skip
    fi
}

init {
    atomic { run writer_of_node(); run writer_of_other(); run application(); run node(); run network() };
    timeout ->
    holds(nothing_lost, applied == stored)
}
