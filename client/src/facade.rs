//! One list of methods, two kinds of clients: functions that wait, and futures.
//!
//! The methods of a type are listed once, in a macro that takes the name of one of the two below
//! and the driver; each names the future behind it. [`blocking`] makes plain functions of them,
//! [`tasks`] `async` ones.

/// Gives methods to a type over drivers that block.
macro_rules! blocking {
    (
        impl [$($lifetime:lifetime)?] $type:ident<$driver:ident> {
            $(
                $(#[$meta:meta])*
                fn $name:ident($self:ident: $receiver:ty $(, $argument:ident: $kind:ty)* $(,)?)
                    -> $result:ty = $operation:ident;
            )*
        }
    ) => {
        impl<$($lifetime,)? $driver: $crate::driver::Blocking> $type<$($lifetime,)? $driver> {
            $(
                $(#[$meta])*
                pub fn $name($self: $receiver $(, $argument: $kind)*) -> $result {
                    $crate::driver::now($self.$operation($($argument),*))
                }
            )*
        }
    };
}

/// Gives methods to a type over the driver of tasks.
macro_rules! tasks {
    (
        impl [$($lifetime:lifetime)?] $type:ident<$driver:ident> {
            $(
                $(#[$meta:meta])*
                fn $name:ident($self:ident: $receiver:ty $(, $argument:ident: $kind:ty)* $(,)?)
                    -> $result:ty = $operation:ident;
            )*
        }
    ) => {
        impl<$($lifetime)?> $type<$($lifetime,)? $driver> {
            $(
                $(#[$meta])*
                pub async fn $name($self: $receiver $(, $argument: $kind)*) -> $result {
                    $self.$operation($($argument),*).await
                }
            )*
        }
    };
}

pub(crate) use {blocking, tasks};
