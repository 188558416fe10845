/* Claims: one session, two nodes, and three connections that want it, one of which holds it at first. Connections
 * break, clients come back before that is noticed, the session is kicked or expires, and one node is killed.
 *
 * Everything inside of d_step { } is one statement of the database under the log's lock, or one tick of a node's event
 * loop.
 */
#define holds(name, condition) assert(condition)

#define NODES 2
#define CONNECTIONS 3
#define LAST 5                /* the highest offset */
#define EVENTS 1
#define NOBODY 9

mtype = { an_event, a_claim, a_kick }
mtype = { elsewhere, connecting, live }

/* -- the database ------------------------------------------------------------------------------------------ */
mtype kind[LAST + 1];         /* the log */
byte claimed_by[LAST + 1];    /* the generation of a claim */
byte head = 0;
bool exists = true;           /* the row of the session */
byte generation = 1;
byte settled = 1;             /* the generation that may still write */
byte holder = 0;              /* its node */
bool released = false;        /* it has a time at which it expires */

/* -- the nodes --------------------------------------------------------------------------------------------- */
bool alive[NODES] = true;
byte cursor[NODES];
byte current[NODES] = NOBODY; /* the connection that has the sid on this node */
bool announced[NODES * 4];    /* by node and generation: the node was notified that its holder has let go */

/* -- the connections --------------------------------------------------------------------------------------- */
bool quick[CONNECTIONS];      /* its connect handler returns at once */
mtype state[CONNECTIONS];
byte at[CONNECTIONS];         /* the node */
byte mine[CONNECTIONS];       /* the generation of its claim */
bool closed[CONNECTIONS];     /* its node closes it, because it met a newer claim */
bool kicked[CONNECTIONS];     /* its node met a kick */

/* -- what the invariants need ------------------------------------------------------------------------------ */
bool ended = false;           /* the session is over */
byte writer = 1;              /* the lowest generation that may write */
byte troubles = 1, expiries = 1;
bool let_go[4];               /* by generation: its holder has done all work of its end */

inline append(what) {
    head++; kind[head] = what;
    printf("%d is appended: %e\n", head, what)
}

/* An event goes to a connection: no newer claim and no kick may lie below it. */
inline deliver(c, o) {
    i = 1;
    do
    :: i < o ->
        holds(one_holder, kind[i] != a_claim || claimed_by[i] <= mine[c]);
        holds(ended_for_good, kind[i] != a_kick);
        i++
    :: else -> break
    od;
    i = 0;
    printf("connection %d is sent %d\n", c, o)
}

proctype delivery(byte n) {
    byte c, i;
end:
    do
    :: d_step {
        alive[n] && cursor[n] < head ->
        cursor[n]++;
        c = current[n];
        printf("the cursor of node %d passes %d\n", n, cursor[n]);
        if
        :: c == NOBODY -> skip
        :: c != NOBODY && kind[cursor[n]] == an_event && state[c] == live -> deliver(c, cursor[n])
        :: c != NOBODY && kind[cursor[n]] == a_claim && claimed_by[cursor[n]] > mine[c] ->
            closed[c] = true; current[n] = NOBODY; state[c] = elsewhere;
            printf("node %d closes connection %d\n", n, c)
        :: c != NOBODY && kind[cursor[n]] == a_kick ->
            kicked[c] = true; current[n] = NOBODY; state[c] = elsewhere;
            printf("node %d ends connection %d\n", n, c)
        :: else -> skip
        fi;
        c = 0
      }
    od
}

#define over(c) (closed[c] || kicked[c] || !alive[at[c]])

proctype connection(byte c) {
    byte offset, former, i, upto;
    bool up;
end_waits:
    if
    :: c == 0 -> goto is_live
    :: d_step {
        c > 0 && head < LAST && mine[c - 1] > 0 -> former = NOBODY;
        if
        :: !exists -> printf("connection %d: there is no session to claim\n", c)
        :: else ->
            holds(ended_for_good, !ended);
            append(a_claim); offset = head;
            generation++; mine[c] = generation; claimed_by[head] = generation;
            if
            :: holder != NOBODY && alive[holder] -> former = settled
            :: else -> settled = generation; writer = generation
            fi;
            holder = at[c]; released = false;
            printf("connection %d on node %d claims generation %d\n", c, at[c], mine[c])
        fi
       }
    fi;
    if
    :: mine[c] == 0 || !alive[at[c]] -> goto gone
    :: d_step {               /* the records between the claim and the cursor */
        mine[c] > 0 && alive[at[c]] && cursor[at[c]] >= offset ->
        i = offset + 1;
        do
        :: i <= cursor[at[c]] ->
            if
            :: kind[i] == a_claim -> closed[c] = true
            :: kind[i] == a_kick -> kicked[c] = true
            :: else -> skip
            fi;
            i++
        :: else -> break
        od;
        i = 0;
        if :: !over(c) -> state[c] = connecting; current[at[c]] = c :: else fi;
        if
        :: !over(c) && former == NOBODY && quick[c] ->
            state[c] = live; up = true;
            printf("connection %d: CONNECT with the page of the claim\n", c)
        :: else -> skip
        fi
       }
    fi;
    if
    :: up -> goto is_live
    :: !up && former == NOBODY -> skip
    :: d_step {               /* released, or two seconds are over */
        !up && former != NOBODY && alive[at[c]] ->
        if
        :: exists && generation == mine[c] ->
            holds(announced_at_once, announced[at[c] * 4 + former] || !let_go[former]);
            settled = generation; writer = generation;
            printf("connection %d settles generation %d\n", c, mine[c])
        :: else -> closed[c] = true
        fi
       }
    :: over(c) -> goto leave
    fi;
    if
    :: d_step {
        alive[at[c]] ->
        if
        :: exists && generation == mine[c] -> upto = head; printf("connection %d reads a page up to %d\n", c, upto)
        :: else -> closed[c] = true
        fi
       }
    :: over(c) -> goto leave
    fi;
    if
    :: over(c) -> goto leave
    :: d_step {
        !over(c) ->
        state[c] = live;
        printf("connection %d: CONNECT with the page\n", c);
        do
        :: offset < upto ->
            offset++;
            if :: kind[offset] == an_event -> deliver(c, offset) :: else fi
        :: else -> break
        od
       }
    fi;
is_live:
    skip;
    d_step { offset = 0; upto = 0; former = 0; up = false };
    if
    :: over(c) -> skip
    :: d_step {
        !over(c) ->
        closed[c] = true; state[c] = elsewhere;
        if :: current[at[c]] == c -> current[at[c]] = NOBODY :: else fi;
        printf("connection %d breaks\n", c)
       }
    :: d_step {               /* the DISCONNECT packet of the client */
        !over(c) && troubles > 0 -> troubles--;
        kicked[c] = true; state[c] = elsewhere;
        if :: current[at[c]] == c -> current[at[c]] = NOBODY :: else fi;
        printf("connection %d: the client disconnects\n", c)
       }
    fi;
leave:
    if
    :: !alive[at[c]] -> goto gone
    :: else ->
        if
        :: kicked[c] -> d_step {
            if
            :: exists && generation <= mine[c] ->
                holds(held_is_kept, mine[c] >= generation);
                exists = false; ended = true;
                printf("connection %d ends the session\n", c)
            :: else -> skip
            fi
          }
        :: else -> skip
        fi;
        d_step {              /* its disconnect handler saves session data */
            if
            :: exists && (mine[c] == generation || mine[c] == settled) ->
                printf("connection %d saves session data\n", c);
                holds(no_late_write, mine[c] >= writer)
            :: else -> skip
            fi
        };
        d_step {
            if
            :: exists && generation == mine[c] ->
                holder = NOBODY; settled = generation; released = true; writer = generation;
                printf("connection %d releases the session\n", c)
            :: exists && generation != mine[c] && settled == mine[c] ->
                settled = generation; writer = generation;
                announced[holder * 4 + mine[c]] = true; let_go[mine[c]] = true;
                printf("connection %d lets go, and node %d is notified\n", c, holder)
            :: else -> let_go[mine[c]] = true
            fi
        }
    fi;
gone:
    skip;
    d_step { offset = 0; former = 0; upto = 0; state[c] = elsewhere }
}

proctype world() {
    byte events = 0, c;
end:
    do
    :: d_step { events < EVENTS && head > 0 && head < LAST -> events++; append(an_event) }
    :: d_step { troubles > 0 && head < LAST -> troubles--; append(a_kick); exists = false; ended = true }
    :: d_step { troubles > 0 -> troubles--; alive[0] = false; current[0] = NOBODY; printf("node 0 is killed\n") }
    :: d_step {
        exists && expiries > 0 && (released || (holder != NOBODY && !alive[holder])) -> expiries--;
        c = 0;
        do
        :: c < CONNECTIONS -> holds(held_is_kept, state[c] != live || mine[c] != generation || !alive[at[c]]); c++
        :: else -> break
        od;
        c = 0;
        exists = false; ended = true;
        printf("the session expires\n")
      }
    od
}

init {
    byte c;
    d_step {
        mine[0] = 1; state[0] = live; current[0] = 0; at[0] = 0;
        state[1] = elsewhere; state[2] = elsewhere
    };
    if :: at[1] = 0 :: at[1] = 1 fi;
    if :: at[2] = 0 :: at[2] = 1 fi;
    quick[1] = true;
    atomic {
        run delivery(0); run delivery(1); run connection(0); run connection(1); run connection(2);
        run world()
    };
    timeout ->                /* all connections have ended by now */
    holds(let_go, !exists || released || (holder != NOBODY && !alive[holder]))
}
