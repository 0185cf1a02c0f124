//! Times as transaction ids, and ids that never go backwards.
//!
//! A tid is a time stamp (`persistent/timestamp.py`): its upper half counts minutes in a calendar
//! where every month has 31 days, its lower half is the part of the minute, in units of 60 s / 2^32.
//!
//! ```text
//!   | ((year-1900)*12 + month-1)*31 + day-1)*24 + hour)*60 + minute | second * 2^32 / 60 |
//!     32 bits                                                         32 bits
//! ```

use std::time::Duration;

use crate::ids::Tid;

/// Steps of a tid's lower half in a second: 2^32 / 60.
const STEPS_PER_SECOND: f64 = 4_294_967_296.0 / 60.0;

/// From 1900-01-01 to 1970-01-01 (`persistent/_timestamp.c`, `gmoff`).
const SECONDS_1900_TO_1970: i64 = 2_208_988_800;

/// From 1970-01-01 to 10000-01-01, which no calendar has.
const SECONDS_1970_TO_10000: f64 = 253_402_300_800.0;

/// The part of a second that a step is (`persistent/_timestamp.c`, `SCONV`).
const SECONDS_PER_STEP: f64 = 60.0 / 65_536.0 / 65_536.0;

/// A moment of the calendar, in UTC.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calendar {
    /// 1900 to 9999.
    pub year: u32,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
    /// 0 to 23.
    pub hour: u32,
    /// 0 to 59.
    pub minute: u32,
    /// 0 to 59.
    pub second: u32,
    /// 0 to 999,999.
    pub microsecond: u32,
}

impl Calendar {
    /// The UTC calendar at a time since 1970, for log lines and for tids.
    pub fn at(since_1970: Duration) -> Self {
        let seconds = since_1970.as_secs();
        let (year, month, day) = civil_from_days((seconds / 86_400) as i64);
        let of_day = seconds % 86_400;
        Self {
            year: year as u32,
            month,
            day,
            hour: (of_day / 3600) as u32,
            minute: (of_day / 60 % 60) as u32,
            second: (of_day % 60) as u32,
            microsecond: since_1970.subsec_micros(),
        }
    }
}

impl Tid {
    /// The id that names a moment, given as the time since 1970-01-01 UTC.
    pub fn at(since_1970: Duration) -> Self {
        let at = Calendar::at(since_1970);
        let days = ((at.year - 1900) * 12 + at.month - 1) * 31 + at.day - 1;
        let minutes = (days * 24 + at.hour) * 60 + at.minute;
        let second = f64::from(at.second) + f64::from(since_1970.subsec_nanos()) / 1e9;
        Self(u64::from(minutes) << 32 | (second * STEPS_PER_SECOND) as u64)
    }

    /// The id that names a moment, given in seconds since 1970, as `TimeStamp` of the persistent
    /// package makes it of `time.gmtime`. `None` before 1900, past 9999, and for what is no time.
    pub fn at_seconds(since_1970: f64) -> Option<Self> {
        let possible =
            (-(SECONDS_1900_TO_1970 as f64)..SECONDS_1970_TO_10000).contains(&since_1970);
        if !possible {
            return None;
        }
        let whole = since_1970.floor() as i64;
        let (year, month, day) = civil_from_days(whole.div_euclid(86_400));
        let minute = whole.rem_euclid(86_400) / 60;
        let days = ((year - 1900) * 12 + i64::from(month) - 1) * 31 + i64::from(day) - 1;
        let second = since_1970.rem_euclid(60.0);
        let minutes = (days * 24 * 60 + minute) as u64;
        Some(Self(minutes << 32 | (second * STEPS_PER_SECOND) as u64 & 0xffff_ffff))
    }

    /// The moment that this id names, in seconds since 1970, as `TimeStamp.timeTime()` gives it.
    pub fn seconds_since_1970(self) -> f64 {
        let minutes = self.0 >> 32;
        let (hour, minute) = (minutes / 60 % 24, minutes % 60);
        let days = minutes / (24 * 60);
        let (year, month, day) = (days / (31 * 12) + 1900, days / 31 % 12 + 1, days % 31 + 1);
        let days_since_1970 = days_from_civil(year as i64, month as u32, day as u32);
        let whole = days_since_1970 * 86_400 + (hour * 3600 + minute * 60) as i64;
        // Python counts from 1900 and takes the years until 1970 off again, after it has rounded to
        // what a double can say of so large a number: so do we, to the last bit.
        let since_1900 = (whole + SECONDS_1900_TO_1970) as f64
            + (self.0 & 0xffff_ffff) as f64 * SECONDS_PER_STEP;
        since_1900 - SECONDS_1900_TO_1970 as f64
    }

    /// The id of a commit at a moment: the moment itself, or the next id if the clock is behind.
    ///
    /// Ids rise even when the clock stands still or is set back (`ZODB/BaseStorage.py`).
    #[must_use]
    pub fn later(self, since_1970: Duration) -> Self {
        Self::at(since_1970).max(self.next())
    }
}

/// The proleptic Gregorian calendar from a count of days since 1970-01-01.
///
/// The method is Howard Hinnant's `civil_from_days` (<https://howardhinnant.github.io/date_algorithms.html>):
/// eras of 400 years, years that begin in March.
fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * from_march + 2) / 5 + 1) as u32;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 } as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil_from_days`]. A 31st of a shorter month runs on into the next.
fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let from_march = i64::from((month + 9) % 12);
    let day_of_year = (153 * from_march + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: [(u64, f64); 5] = [
        (0x040d_34e3_0000_0001, 1795428660.0),
        (0x040d_34e3_3555_5555, 1795428672.5),
        (0x040d_34e3_1234_5678, 1795428664.266667),
        (0x040d_34e3_dead_beef, 1795428712.190319),
        (0x040d_34e3_ffff_ffff, 1795428720.0),
    ];

    #[test]
    fn a_moment_and_its_tid_name_each_other() {
        // TimeStamp(2026, 11, 23, 10, 11, 12.5).raw() of the persistent package.
        let moment = Duration::from_millis(1_795_428_672_500);
        let tid = Tid::at(moment);
        assert_eq!(tid, Tid(0x040d_34e3_3555_5555));
        assert!((tid.seconds_since_1970() - moment.as_secs_f64()).abs() < 1e-6);
    }

    #[test]
    fn times_are_rounded_as_python_rounds_them() {
        // TimeStamp(raw).timeTime() of the persistent package.
        for (tid, time) in TIMES {
            assert_eq!(Tid(tid).seconds_since_1970(), time);
        }
    }

    #[test]
    fn a_pack_time_is_the_id_that_python_makes_of_it() {
        // TimeStamp(*time.gmtime(t)[:5] + (t % 60,)).raw()
        let rows = [
            (1_795_428_672.5, Some(0x040d_34e3_3555_5555)),
            (0.0, Some(0x023c_2b00_0000_0000)),
            (-2_208_988_800.0, Some(0)),
            (-1.0, Some(0x023c_2aff_fbbb_bbbb)),
            (-2_208_988_800.5, None),
            (253_402_300_800.0, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ];
        for (time, expected) in rows {
            assert_eq!(Tid::at_seconds(time), expected.map(Tid), "{time}");
        }
    }

    #[test]
    fn every_day_of_four_centuries_survives_the_calendar() {
        for day in -40_000..110_000 {
            let (year, month, of_month) = civil_from_days(day);
            assert_eq!(days_from_civil(year, month, of_month), day);
        }
    }

    #[test]
    fn a_clock_that_goes_back_does_not_take_the_ids_with_it() {
        let noon = Duration::from_secs(1_800_000_000);
        let first = Tid::ZERO.later(noon);
        let second = first.later(noon - Duration::from_secs(3600));
        assert_eq!(second, first.next());
        assert_eq!(
            second.later(noon + Duration::from_secs(60)),
            Tid::at(noon + Duration::from_secs(60))
        );
    }
}
