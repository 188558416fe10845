/* The relay: transactions insert their events, and a node moves committed rows to the log. Two transactions, a direct
 * append, and two nodes, of which one may be killed.
 *
 * The first transaction emits twice, so the ids of the transactions may interleave. A row is known by its id.
 *
 * Everything inside of d_step { } is one statement of the database, or one transaction that holds the log's lock and
 * takes effect at its commit. What a node waits for with a pause, it waits for here without one.
 */
#define holds(name, condition) assert(condition)
#define bit(o) (1 << (o))

#define ROWS 3
#define NODES 2
#define FIRST 0               /* the transactions */
#define SECOND 1

#define ASLEEP 0              /* sio_relay_state */
#define MOVING(n) (1 + 2 * (n))
#define DROWSY(n) (2 + 2 * (n))
#define mover ((state - 1) / 2)

/* -- the database ------------------------------------------------------------------------------------------ */
byte state = ASLEEP;
byte ids = 0;                 /* the sequence of the ids */
byte owner[ROWS + 1];            /* the transaction of a row */
byte rows = 0;                /* committed rows that wait, as bits */
byte floor = 0;               /* no row at or below it waits */
bool open[2];                 /* transactions that hold a lock on sio_relay */
bool committed[2];
byte place[ROWS + 1];         /* where a row is in the log. 0 if it is not */
byte places = 0;

/* -- the nodes --------------------------------------------------------------------------------------------- */
bool alive[NODES] = true;
bool sent[NODES];             /* a notification is on its way */
bool ring[NODES];             /* it has arrived */

bool knows[2];                /* a transaction emitted after the other one had committed */

#define opened_now ((open[FIRST] -> 1 : 0) + (open[SECOND] -> 2 : 0))
#define above(id) ((rows >> (id + 1)) << (id + 1))

/* Move those of the rows that still wait, of the transaction with the lower last id. Take that transaction out of them. */
inline move_next(those) {
    r = 1; next = 0;
    last[FIRST] = 9; last[SECOND] = 9;
    do
    :: r <= ROWS -> if :: those & bit(r) -> last[owner[r]] = r :: else -> skip fi; r++
    :: else -> break
    od;
    next = (last[FIRST] < last[SECOND] -> FIRST : SECOND);
    r = 1;
    do
    :: r <= ROWS ->
        if
        :: (those & bit(r)) && owner[r] == next ->
            those = those & (15 - bit(r));
            if
            :: rows & bit(r) ->
                places++; place[r] = places; rows = rows & (15 - bit(r));
                printf("row %d of transaction %d is moved to the log\n", r, owner[r] + 1)
            :: else -> skip
            fi
        :: else -> skip
        fi;
        r++
    :: else -> break
    od;
    r = 0; next = 0; last[FIRST] = 0; last[SECOND] = 0
}

/* A node: one statement finds the committed rows. Then each transaction is moved under the log's lock. */
inline look(id) {
    d_step { found = above(id) };
    do
    :: d_step { found > 0 -> move_next(found) }
    :: found == 0 -> break
    od;
    skip
}

proctype transaction(byte t) {
    byte seen, count, mine;
    bool rings;
    d_step { open[t] = true; printf("transaction %d locks the table\n", t + 1) };
    do
    :: count < (t == FIRST -> 2 : 1) ->
        d_step {
            seen = state;
            rings = rings || seen == ASLEEP || seen % 2 == 0;
            printf("transaction %d reads the state %d\n", t + 1, seen);
            seen = 0
        };
        d_step {
            ids++; owner[ids] = t; mine = mine | bit(ids); count++;
            if :: count == 1 -> knows[t] = committed[1 - t] :: else -> skip fi;
            printf("transaction %d inserts row %d\n", t + 1, ids)
        }
    :: else -> break
    od;
    skip;
    d_step {
        rows = rows | mine; committed[t] = true;
        if :: rings -> sent[0] = true; sent[1] = true :: else -> skip fi;
        printf("transaction %d commits, and rings: %d\n", t + 1, rings)
    };
    d_step { open[t] = false; mine = 0; rings = false; count = 0; printf("the lock of transaction %d is gone\n", t + 1) }
}

proctype direct() {
    byte r, next, last[2], known, found;
    d_step {
        known = (committed[FIRST] -> 1 : 0) + (committed[SECOND] -> 2 : 0);
        printf("a direct append begins\n")
    };
    d_step {
        found = above(floor);
        do :: found > 0 -> move_next(found) :: else -> break od;
        places++;
        printf("the direct append has its place\n");
        r = 1;
        do
        :: r <= ids ->
            holds(cause_first, !(known & bit(owner[r])) || place[r] > 0);
            r++
        :: else -> break
        od;
        r = 0; known = 0
    }
}

proctype node(byte n) {
    byte r, next, last[2], found, still_open, upto, opened;
    bool rise;
    {
end:
    do
    :: d_step { sent[n] -> sent[n] = false; ring[n] = true }
    :: d_step { ring[n] -> ring[n] = false };
attend:
       if
       :: state == ASLEEP && rows == 0 -> goto sleep
       :: state != ASLEEP && mover != n && alive[mover] ->
           state == ASLEEP || !alive[mover];
           goto attend
       :: d_step {            /* under the log's lock */
           (state == ASLEEP && rows > 0) || (state != ASLEEP && (mover == n || !alive[mover])) ->
           state = MOVING(n);
           printf("node %d moves from now on\n", n)
          }
       fi;
       look(0);
       do
       :: rows > 0 -> look(floor)
       :: d_step {            /* the floor: all ids up to the last one belong to transactions that are open, or have ended */
           !rise && upto == 0 && ids > floor ->
           upto = ids; opened = opened_now
          }
       :: d_step { !rise && upto > 0 && (opened & opened_now) == 0 -> rise = true };
          look(floor);
          d_step { floor = upto; upto = 0; opened = 0; rise = false; printf("the floor rises to %d\n", floor) }
       :: break               /* idle for a second */
       od;
       skip;
       d_step {
           upto = 0; opened = 0; ring[n] = false;
           if :: state == MOVING(n) -> state = DROWSY(n); printf("node %d is about to fall asleep\n", n) :: else -> skip fi
       };
       if
       :: state != DROWSY(n) -> goto attend
       :: else
       fi;
       skip;
       d_step { still_open = opened_now };
       do
       :: still_open > 0 -> look(floor); d_step { still_open = still_open & opened_now }
       :: ring[n] -> goto attend
       :: d_step { sent[n] -> sent[n] = false; ring[n] = true }
       :: still_open == 0 -> break
       od;
       skip;
       look(0);
       if
       :: ring[n] -> goto attend
       :: d_step {
           !ring[n] ->
           if :: state == DROWSY(n) -> state = ASLEEP; printf("node %d is asleep\n", n) :: else -> skip fi
          };
          if :: state != ASLEEP -> goto attend :: else fi
       fi;
sleep: skip
    od
    } unless { !alive[n] }
}

/* Another node that moves rows, as one does that starts. */
proctype drainer() {
    byte r, next, last[2], found;
    look(0)
}

proctype killer() {
    d_step { alive[0] = false; printf("node 0 is killed\n") }
}

init {
    byte i;
    atomic {
        run node(0); run node(1); run transaction(FIRST); run transaction(SECOND);
        if :: run killer() :: run direct() :: run drainer() fi
    };
    timeout ->
    holds(nothing_waits, rows == 0);
    d_step {
        i = 1;
        do
        :: i < ROWS ->
            holds(cause_first, owner[i] == owner[i + 1] || !knows[owner[i + 1]] || place[i] < place[i + 1]);
            i++
        :: else -> break
        od
    };
    holds(together, owner[1] != owner[3] || place[3] == place[1] + 1);
    holds(together, owner[1] != owner[2] || place[2] == place[1] + 1);
    holds(together, owner[2] != owner[3] || place[3] == place[2] + 1)
}
