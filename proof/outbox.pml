/* Transactional emits: two transactions of an application emit, and one of them holds rows for which constraints of the
 * other one wait at its commit.
 *
 * PostgreSQL runs deferred constraint triggers in rounds at the commit. What a trigger queues runs in the next round.
 * Within a round the order is that of the application's statements, so this model takes any order.
 */
#define holds(name, condition) assert(condition)
#define bit(o) (1 << (o))

#define NOBODY 0
#define FIRST 1               /* the transactions */
#define SECOND 2

mtype = { running, committed, rolled_back }

/* -- the database ------------------------------------------------------------------------------------------ */
byte lock_of_the_log = NOBODY;
byte row = NOBODY;            /* who holds the row for which a foreign key check of the first transaction waits */
byte late_row = NOBODY;       /* the same for a constraint that the commit itself queues */
byte sequence = 0;
byte head = 0;                /* the highest offset that is visible */
mtype state[3] = running;
byte outbox[3];               /* events of a transaction in the outbox */
byte moved[3];                /* those that the first stage has taken out */
byte offset[3];               /* the offset of its event */
byte in_log[3];               /* events of a transaction that are visible in the log */

inline roll_back(t) {
    d_step {
        state[t] = rolled_back; outbox[t] = 0; moved[t] = 0; offset[t] = 0;
        if :: lock_of_the_log == t -> lock_of_the_log = NOBODY :: else fi;
        if :: row == t -> row = NOBODY; late_row = NOBODY :: else fi;
        printf("transaction %d rolls back\n", t)
    }
}

inline take(t) {
    d_step { moved[t] = outbox[t]; outbox[t] = 0; printf("transaction %d: the first stage\n", t) }
}

inline append(t) {
    d_step { lock_of_the_log == NOBODY || lock_of_the_log == t -> lock_of_the_log = t; printf("transaction %d takes the lock\n", t) };
    d_step { sequence++; offset[t] = sequence; printf("transaction %d takes offset %d\n", t, sequence) }
}

inline commit(t) {
    d_step {
        state[t] = committed;
        if
        :: offset[t] > 0 -> holds(commit_order, head < offset[t]); head = offset[t]; in_log[t] = in_log[t] + moved[t]
        :: else -> skip
        fi;
        lock_of_the_log = (lock_of_the_log == t -> NOBODY : lock_of_the_log);
        if :: row == t -> row = NOBODY; late_row = NOBODY :: else fi;
        printf("transaction %d commits\n", t)
    }
}

inline foreign_key_check(t) {
    d_step {
        holds(no_wait_under_lock, row == NOBODY || row == t || lock_of_the_log != t);
        printf("transaction %d: the foreign key check\n", t)
    };
    row == NOBODY || row == t
}

/* The trigger of the application has queued it during the commit. */
inline late_check(t) {
    printf("transaction %d: a constraint that the commit has queued\n", t);
    if
    :: late_row == NOBODY || late_row == t
    :: lock_of_the_log == t && late_row != NOBODY -> goto over  /* lock_timeout */
    fi
}

proctype first() {
    d_step { outbox[FIRST]++; printf("transaction 1 emits\n") };
    if
    :: skip
    :: d_step { outbox[FIRST]++; printf("transaction 1 emits after a savepoint\n") };
       d_step { outbox[FIRST]--; printf("transaction 1 rolls back to the savepoint\n") }
    :: printf("transaction 1 sets its constraints IMMEDIATE, and stage two puts the event back\n")
    fi;
    if
    :: skip
    :: goto over
    fi;
    /* the first round of the commit */
    if
    :: take(FIRST); foreign_key_check(FIRST)
    :: foreign_key_check(FIRST); take(FIRST)
    fi;
    /* the second round */
    if
    :: append(FIRST)
    :: append(FIRST); late_check(FIRST)
    :: late_check(FIRST); append(FIRST)
    fi;
    commit(FIRST);
    goto done;
over:
    roll_back(FIRST);
done:
    skip
}

proctype second() {
    d_step { row == NOBODY -> row = SECOND; late_row = SECOND; printf("transaction 2 locks both rows\n") };
    d_step { outbox[SECOND]++; printf("transaction 2 emits\n") };
    if
    :: skip
    :: goto over
    fi;
    take(SECOND);
    append(SECOND);
    commit(SECOND);
    goto done;
over:
    roll_back(SECOND);
done:
    skip
}

init {
    atomic { run first(); run second() };
    timeout ->
    holds(all_end, state[FIRST] != running && state[SECOND] != running);
    holds(if_it_commits, in_log[FIRST] == (state[FIRST] == committed -> 1 : 0));
    holds(if_it_commits, in_log[SECOND] == (state[SECOND] == committed -> 1 : 0))
}
