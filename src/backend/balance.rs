//! Which server is next. A choice depends on nothing but the worker's number and the choices
//! before, so that the simulator can replay it.

/// Round robin over one backend's servers, for one worker.
#[derive(Debug, Clone)]
pub struct RoundRobin {
    cursor: usize,
}

impl RoundRobin {
    /// Begins at the server with the worker's number, so that workers, which know nothing of each
    /// other, do not all begin with the first.
    pub fn starting_at(worker: u16) -> Self {
        Self { cursor: usize::from(worker) }
    }

    /// Index of the next of `servers`; `None` when there are none. Their number may change from
    /// call to call.
    pub fn next(&mut self, servers: usize) -> Option<usize> {
        let chosen = self.cursor.checked_rem(servers)?;
        self.cursor = chosen + 1;
        Some(chosen)
    }

    /// Index of the next of `servers` that `fits`; each is asked once.
    pub fn next_where(
        &mut self,
        servers: usize,
        mut fits: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        (0..servers).find_map(|_| self.next(servers).filter(|chosen| fits(*chosen)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(mut choose: impl FnMut() -> usize, servers: usize, choices: usize) -> Vec<usize> {
        let mut counts = vec![0; servers];
        for _ in 0..choices {
            counts[choose()] += 1;
        }
        counts
    }

    #[test]
    fn every_server_gets_the_same_share() {
        for servers in 1..9 {
            let mut balance = RoundRobin::starting_at(5);
            let counts = counts(|| balance.next(servers).unwrap(), servers, 100 * servers);
            assert_eq!(counts, vec![100; servers]);
        }
    }

    #[test]
    fn first_choices_of_the_workers_are_spread() {
        let counts = {
            let mut workers = 0..40;
            let first = || RoundRobin::starting_at(workers.next().unwrap()).next(4).unwrap();
            counts(first, 4, 40)
        };
        assert_eq!(counts, [10; 4]);
    }

    #[test]
    fn no_server_is_no_choice() {
        let mut balance = RoundRobin::starting_at(0);
        assert_eq!(balance.next(0), None);
        assert_eq!(balance.next_where(0, |_| true), None);
        assert_eq!(balance.next_where(1, |chosen| chosen != 0), None);
        assert_eq!(balance.next(1), Some(0));
    }

    #[test]
    fn a_dead_server_is_never_tried_twice_in_a_row_and_the_rest_share_its_load() {
        for servers in 2..6 {
            for dead in 0..servers {
                let mut balance = RoundRobin::starting_at(0);
                let serve = || match balance.next(servers).unwrap() {
                    chosen if chosen == dead => {
                        balance.next_where(servers, |other| other != dead).unwrap()
                    }
                    chosen => chosen,
                };
                let mut counts = counts(serve, servers, 60 * servers);
                assert_eq!(counts.remove(dead), 0);
                // The one after the dead server takes its share besides its own, at worst.
                let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
                assert!(*least >= 60, "{servers} servers, {dead} dead: {counts:?}");
                assert!(*most <= 120, "{servers} servers, {dead} dead: {counts:?}");
            }
        }
    }

    #[test]
    fn servers_that_do_not_fit_are_passed_over_and_the_others_take_turns() {
        let mut balance = RoundRobin::starting_at(0);
        let mut odd = || balance.next_where(6, |chosen| chosen % 2 == 1).unwrap();
        assert_eq!([odd(), odd(), odd(), odd()], [1, 3, 5, 1]);
        assert_eq!(balance.next_where(6, |_| false), None);
    }

    #[test]
    fn list_may_shrink_between_two_tries() {
        let mut balance = RoundRobin::starting_at(7);
        assert_eq!(balance.next(8), Some(7));
        assert_eq!(balance.next_where(1, |chosen| chosen != 7), Some(0));
        assert!(balance.next(3).unwrap() < 3);
    }
}
